"""`bench input`: how many images per second the input pipeline delivers."""

import argparse
import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Iterator

import grain
import numpy as np

from vmoe_study.data import pipeline
from vmoe_study.data.augment import decode
from vmoe_study.data.sources import Source, open_source

HELP = "measure the input pipeline: decode only, training and evaluation recipe"
TRAIN_OPS = "inception_crop(224)|flip_lr|value_range(-1, 1)"
EVAL_OPS = "resize_small(256)|central_crop(224)|value_range(-1, 1)"
CORPUS_SAMPLE = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's options."""
  parser.add_argument("--name", default="jft_like/2000", help="data set")
  parser.add_argument("--split", default="train")
  parser.add_argument("--data_dir", help="the TFDS folder")
  parser.add_argument("--train_ops", default=TRAIN_OPS)
  parser.add_argument("--eval_ops", default=EVAL_OPS)
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--num_batches", type=int, default=40, help="to time")
  parser.add_argument(
    "--workers", type=int, nargs="+", default=[1, 2], help="worker processes"
  )


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
) -> Iterator[tuple[str, Iterator[pipeline.Batch]]]:
  """Yields the batches of the three pipelines, by name."""
  source = open_source(args.name, args.split, args.data_dir)
  decoding = (
    grain.MapDataset.range(len(source))
    .shuffle(seed=0)
    .repeat()
    .map(functools.partial(decode_only, source))
    .batch(args.batch_size)
  )
  yield "decode", pipeline.Batches(decoding, lambda x: x, workers).iterate()
  spec = pipeline.DataSpec(
    args.name, args.split, args.train_ops, source.num_classes, args.data_dir
  )
  sizes = {"batch_size": args.batch_size, "num_workers": workers}
  yield "train", pipeline.train_input(spec, seed=0, **sizes).iterate()
  # Examples recur, so that one pass is long enough to be timed.
  batches = args.num_batches + warmup_batches(workers)
  indices = np.arange(args.batch_size * batches) % len(source)
  spec = dataclasses.replace(spec, ops=args.eval_ops)
  yield "eval", iter(pipeline.eval_input(spec, indices=indices, **sizes))


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
  seconds = time.perf_counter() - start
  batches.close()
  return count * args.batch_size / seconds


def run(args: argparse.Namespace) -> int:
  """Prints the corpus, then one row of images/s per number of workers."""
  source = open_source(args.name, args.split, args.data_dir)
  print(f"corpus: {args.name} {args.split}: {describe_corpus(source)}")
  print(f"train:  {args.train_ops}\neval:   {args.eval_ops}")
  print(f"images/s, batches of {args.batch_size}, {os.cpu_count()} cores")
  print(f"{'workers':>7} {'decode':>8} {'train':>8} {'eval':>8} train/decode")
  for workers in args.workers:
    rates = {
      name: images_per_second(batches, workers, args)
      for name, batches in open_inputs(args, workers)
    }
    share = rates["train"] / rates["decode"]
    row = " ".join(f"{rate:8.0f}" for rate in rates.values())
    print(f"{workers:7d} {row} {share:12.0%}")
  return 0
