"""Benchmark of the input pipeline, in images per second on this machine."""

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from vmoe_study.data.decoding import decode
from vmoe_study.data.examples import Batch, Example, ExampleReader
from vmoe_study.data.pipeline import TrainInput, eval_input, train_input
from vmoe_study.data.records import intact
from vmoe_study.data.sources import Source, open_split
from vmoe_study.data.spec import DataSpec
from vmoe_study.data.workers import (
  BATCHES_AHEAD,
  THREADS,
  close_workers,
  shared_workers,
)

SAMPLE = 200  # Images whose mean size is reported.


@dataclasses.dataclass(frozen=True)
class InputBench:
  """A data set, and three ways to read it.

  "decode" only reads and decodes images, which is the speed limit; "train" and
  "eval" are the pipelines of training and evaluation.

  Attributes:
    name: name of the data set.
    split: split of the data set.
    data_dir: the TFDS folder; None for TFDS's default.
    train_ops: image operations of training.
    eval_ops: image operations of evaluation.
    batch_size: images per batch.
    num_batches: batches per timing.
    rounds: number of timings.
  """

  name: str
  split: str
  data_dir: str | None
  train_ops: str
  eval_ops: str
  batch_size: int
  num_batches: int
  rounds: int

  def open(self) -> Source:
    """Opens the data set; raises as `open_split`."""
    return open_split(self.name, self.split, self.data_dir)

  def describe(self) -> dict[str, Any]:
    """The data set, the settings and this machine, by name."""
    return {
      "corpus": f"{self.name} {self.split}: {describe_images(self.open())}",
      "train_ops": self.train_ops,
      "eval_ops": self.eval_ops,
      "batch_size": self.batch_size,
      "cores": os.cpu_count(),
      "opencv": cv2.__version__,
    }

  def measure(
    self,
    num_workers: Sequence[int],
    read_threads: Sequence[int],
    log: Callable[..., None],
  ) -> list[dict[str, Any]]:
    """Measures with each number of worker processes and of read threads.

    Args:
      num_workers: numbers of worker processes.
      read_threads: numbers of requests that a worker has open at a time.
      log: called with progress messages, like `logging.info`.

    Returns:
      A row for each pair: median images/s, their ratios to "decode", and the
      speedup of "train" over the first row; also the requests and kB of "train"
      and the share of the workers' time spent waiting for them, which are 0 for
      data that are not read ahead.
    """
    rows: list[dict[str, Any]] = []
    for workers, threads in itertools.product(num_workers, read_threads):
      log("%d worker processes, %d rounds", workers, self.rounds)
      rows.append(self._measure(workers, threads))
      rows[-1]["speedup"] = rows[-1]["train"] / rows[0]["train"]
    return rows

  def _measure(self, workers: int, threads: int) -> dict[str, Any]:
    """Times the three pipelines in turn; idle ones keep their queues full."""
    train, inputs = self._iterators(workers, threads)
    rounds, reading, seconds = [], np.zeros(3), 0.0
    for _ in range(self.rounds):
      rates = {}
      for name, batches in inputs.items():
        for _ in itertools.islice(batches, _num_warmup()):
          pass  # Those that were prefetched.
        before, start = train.reading.copy(), time.perf_counter()
        rates[name] = self._images_per_second(batches)
        reading += train.reading - before
        seconds += (time.perf_counter() - start) * (name == "train")
      rounds.append(rates)
    for batches in inputs.values():
      batches.close()
    close_workers()
    rates = {
      name: float(np.median([r[name] for r in rounds])) for name in inputs
    }
    ratios = {
      f"{name}/decode": rates[name] / rates["decode"]
      for name in ("train", "eval")
    }
    images = self.rounds * self.batch_size * self.num_batches
    requests, size, waited = reading.tolist()
    return {
      "workers": workers,
      "read_threads": threads,
      **rates,
      **ratios,
      "requests/image": requests / images,
      "kB/image": size / images / 1000,
      "wait": waited / (seconds * (workers or THREADS)),
      "rounds": rounds,
    }

  def _iterators(
    self, workers: int, threads: int
  ) -> tuple[TrainInput, dict[str, Any]]:
    source = self.open()
    spec = DataSpec(
      self.name, self.split, self.train_ops, source.num_classes, self.data_dir
    )
    sizes = {
      "batch_size": self.batch_size,
      "num_workers": workers,
      "read_threads": threads,
    }
    train = train_input(spec, seed=0, **sizes)
    decoding = dataclasses.replace(
      train.parts, readers=[_DecodeOnly(r) for r in train.parts.readers]
    )
    # Repeats examples, so that one pass is long enough.
    batches = self.rounds * (self.num_batches + _num_warmup())
    indices = np.arange(self.batch_size * batches) % len(source)
    evaluation = dataclasses.replace(spec, ops=self.eval_ops)
    steps = itertools.count()
    return train, {
      "decode": shared_workers(workers).iterate(decoding, steps),
      "train": train.iterate(),
      "eval": iter(eval_input(evaluation, indices=indices, **sizes)),
    }

  def _images_per_second(self, batches: Iterator[Batch]) -> float:
    """Times `num_batches` batches."""
    start = time.perf_counter()
    count = sum(1 for _ in itertools.islice(batches, self.num_batches))
    return count * self.batch_size / (time.perf_counter() - start)


def _num_warmup() -> int:
  return 2 * (BATCHES_AHEAD + 1)


class _DecodeOnly(ExampleReader):
  """Only decodes images."""

  def __init__(self, reader: ExampleReader):
    vars(self).update(vars(reader))
    self.image_shape = 0, 0, 0

  def read(self, index: int, rng: np.random.Generator | None = None) -> Example:
    decode(self.source[index]["image"])
    image = np.zeros(self.image_shape, np.uint8)
    labels = np.zeros(0, np.int64)
    return {"image": image, "labels": labels, "mask": 1.0, "skipped": 0}


def describe_images(source: Source) -> str:
  """One line: the number of images, and their mean size."""
  sample = source.read(range(min(SAMPLE, len(source))))
  images = [example["image"] for example in map(intact, sample)]
  shapes = np.asarray([decode(image).shape for image in images])
  height, width, _ = shapes.mean(0)
  size = np.mean([len(image) for image in images]) / 1000
  return (
    f"{len(source)} images; the first {len(images)} have {height:.0f} x "
    f"{width:.0f} pixels and {size:.0f} kB on average"
  )
