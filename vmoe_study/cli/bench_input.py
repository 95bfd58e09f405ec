"""`bench input`: how many images per second the input pipeline delivers."""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import time
from collections.abc import Iterator
from typing import Any

import cv2
import grain
import numpy as np
from absl import logging
from etils import epath

from vmoe_study.data import pipeline
from vmoe_study.data.augment import decode
from vmoe_study.data.sources import Source, open_source
from vmoe_study.study.render import markdown_table

HELP = "measure the input pipeline: decode only, training and evaluation recipe"
TRAIN_OPS = "inception_crop(224)|flip_lr|value_range(-1, 1)"
EVAL_OPS = "resize_small(256)|central_crop(224)|value_range(-1, 1)"
CORPUS_SAMPLE = 200
COLUMNS = {
  "workers": "{}",
  "decode": "{:.0f}",
  "train": "{:.0f}",
  "eval": "{:.0f}",
  "train/decode": "{:.2f}",
  "eval/decode": "{:.2f}",
  "speedup": "{:.2f}",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's options."""
  parser.add_argument("--name", default="jft_like/2000", help="data set")
  parser.add_argument("--split", default="train", help="of the data set")
  parser.add_argument("--data_dir", help="the TFDS folder")
  parser.add_argument(
    "--train_ops", default=TRAIN_OPS, help="image operations of training"
  )
  parser.add_argument(
    "--eval_ops", default=EVAL_OPS, help="image operations of evaluation"
  )
  parser.add_argument(
    "--batch_size", type=int, default=32, help="images per batch"
  )
  parser.add_argument("--num_batches", type=int, default=40, help="to time")
  parser.add_argument(
    "--workers", type=int, nargs="+", default=[1, 2], help="worker processes"
  )
  parser.add_argument("--rounds", type=int, default=3, help="timings of each")
  parser.add_argument("--out", metavar="FILE", help="write the rows as JSON")


def describe_corpus(source: Source) -> str:
  """One line: how many images, and their mean size in bytes and pixels."""
  images = [source[i]["image"] for i in range(min(CORPUS_SAMPLE, len(source)))]
  shapes = np.asarray([decode(image).shape for image in images])
  height, width, _ = shapes.mean(0)
  size = np.mean([len(image) for image in images]) / 1000
  return (
    f"{len(source)} images, of the first {len(images)} the mean is"
    f" {height:.0f} x {width:.0f} pixels, {size:.0f} kB"
  )


def decode_only(source: Source, index: int) -> int:
  """Reads and decodes one image and drops it: the codec's own limit."""
  return decode(source[index]["image"]).size


def open_inputs(
  args: argparse.Namespace, workers: int
) -> dict[str, Iterator[pipeline.Batch]]:
  """The batches of the three pipelines, by name."""
  source = open_source(args.name, args.split, args.data_dir)
  decoding = (
    grain.MapDataset.range(len(source))
    .shuffle(seed=0)
    .repeat()
    .map(functools.partial(decode_only, source))
    .batch(args.batch_size)
  )
  spec = pipeline.DataSpec(
    args.name, args.split, args.train_ops, source.num_classes, args.data_dir
  )
  sizes = {"batch_size": args.batch_size, "num_workers": workers}
  # Examples recur, so that one pass is long enough to be timed.
  batches = args.rounds * (args.num_batches + warmup_batches(workers))
  indices = np.arange(args.batch_size * batches) % len(source)
  evaluation = dataclasses.replace(spec, ops=args.eval_ops)
  return {
    "decode": pipeline.Batches(decoding, lambda x: x, workers).iterate(),
    "train": pipeline.train_input(spec, seed=0, **sizes).iterate(),
    "eval": iter(pipeline.eval_input(evaluation, indices=indices, **sizes)),
  }


def warmup_batches(workers: int) -> int:
  """Batches to pass over: those made ahead, before the clock starts."""
  return 2 * (workers + 1) * pipeline.BATCHES_AHEAD


def images_per_second(
  batches: Iterator[pipeline.Batch], workers: int, args: argparse.Namespace
) -> float:
  """Times `num_batches` batches once the pipeline runs steadily."""
  for _ in itertools.islice(batches, warmup_batches(workers)):
    pass
  start = time.perf_counter()
  count = sum(1 for _ in itertools.islice(batches, args.num_batches))
  return count * args.batch_size / (time.perf_counter() - start)


def measure(args: argparse.Namespace, workers: int) -> dict[str, Any]:
  """Images/s of the three pipelines: medians over rounds, taken in turns.

  Pipelines that are not asked for batches stand still, their queues full.
  """
  inputs = open_inputs(args, workers)
  rounds = [
    {
      name: images_per_second(batches, workers, args)
      for name, batches in inputs.items()
    }
    for _ in range(args.rounds)
  ]
  for batches in inputs.values():
    batches.close()
  rates = {name: float(np.median([r[name] for r in rounds])) for name in inputs}
  shares = {
    f"{name}/decode": rates[name] / rates["decode"]
    for name in ("train", "eval")
  }
  return {"workers": workers, **rates, **shares, "rounds": rounds}


def run(args: argparse.Namespace) -> int:
  """Prints the corpus, then one row of images/s per number of workers."""
  source = open_source(args.name, args.split, args.data_dir)
  record: dict[str, Any] = {
    "corpus": f"{args.name} {args.split}: {describe_corpus(source)}",
    "train_ops": args.train_ops,
    "eval_ops": args.eval_ops,
    "batch_size": args.batch_size,
    "cores": os.cpu_count(),
    "opencv": cv2.__version__,
  }
  for name, value in record.items():
    print(f"{name}: {value}")
  rows: list[dict[str, Any]] = []
  for workers in args.workers:
    logging.info("%d worker processes, %d rounds", workers, args.rounds)
    rows.append(measure(args, workers))
    rows[-1]["speedup"] = rows[-1]["train"] / rows[0]["train"]
  cells = [[form.format(row[k]) for k, form in COLUMNS.items()] for row in rows]
  print(f"images/s; speedup: of train, over {args.workers[0]} workers")
  print(markdown_table(list(COLUMNS), cells))
  if args.out:
    text = json.dumps(record | {"rows": rows}, indent=1)
    epath.Path(args.out).write_text(text + "\n")
  return 0
