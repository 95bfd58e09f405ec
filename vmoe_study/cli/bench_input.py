"""`bench input`: how many images per second the input pipeline delivers."""

import argparse

from vmoe_study.cli import paths

HELP = "time the input pipeline: decoding alone, training and evaluation"
TRAIN_OPS = "inception_crop(224)|flip_lr|value_range(-1, 1)"
EVAL_OPS = "resize_small(256)|central_crop(224)|value_range(-1, 1)"
COLUMNS = {
  "workers": "{}",
  "read_threads": "{}",
  "decode": "{:.0f}",
  "train": "{:.0f}",
  "eval": "{:.0f}",
  "train/decode": "{:.2f}",
  "eval/decode": "{:.2f}",
  "speedup": "{:.2f}",
  "requests/image": "{:.3f}",
  "kB/image": "{:.0f}",
  "wait": "{:.2f}",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument("--name", default="jft_like/2000", help="data set")
  parser.add_argument("--split", default="train", help="split to read")
  parser.add_argument("--data-dir", type=paths.path, help="the TFDS folder")
  parser.add_argument(
    "--train-ops", default=TRAIN_OPS, help="image operations of training"
  )
  parser.add_argument(
    "--eval-ops", default=EVAL_OPS, help="image operations of evaluation"
  )
  parser.add_argument(
    "--batch-size", type=int, default=32, help="images per batch"
  )
  parser.add_argument(
    "--num-batches", type=int, default=40, help="batches per timing"
  )
  parser.add_argument(
    "--workers",
    type=int,
    nargs="+",
    default=[1, 2],
    help="numbers of worker processes",
  )
  parser.add_argument(
    "--read-threads",
    type=int,
    nargs="+",
    default=[16],
    help="numbers of concurrent requests to an object store per worker",
  )
  parser.add_argument(
    "--rounds", type=int, default=3, help="number of timings of each setting"
  )
  parser.add_argument(
    "--out", type=paths.path, metavar="FILE", help="write the rows as JSON"
  )


def run(args: argparse.Namespace) -> int:
  """Prints the settings, then a row of images/s per number of workers."""
  import json

  from absl import logging
  from etils import epath

  from vmoe_study.drawing.render import markdown_table
  from vmoe_study.performance.input_bench import InputBench

  bench = InputBench(
    args.name,
    args.split,
    args.data_dir,
    args.train_ops,
    args.eval_ops,
    args.batch_size,
    args.num_batches,
    args.rounds,
  )
  description = bench.describe()
  for name, value in description.items():
    print(f"{name}: {value}")
  rows = bench.measure(args.workers, args.read_threads, logging.info)
  cells = [[form.format(row[k]) for k, form in COLUMNS.items()] for row in rows]
  print(f"images/s; speedup: train, relative to {args.workers[0]} workers")
  print("requests, kB and the share of time spent waiting: train, object store")
  print(markdown_table(list(COLUMNS), cells))
  if args.out:
    text = json.dumps(description | {"rows": rows}, indent=1)
    epath.Path(args.out).write_text(text + "\n")
  return 0
