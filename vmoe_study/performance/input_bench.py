"""Benchmark of the input pipeline: images per second on this machine."""

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import grain
import numpy as np

from vmoe_study.data.decoding import decode
from vmoe_study.data.examples import Batch
from vmoe_study.data.pipeline import eval_input, train_input
from vmoe_study.data.sources import Source, open_split
from vmoe_study.data.spec import DataSpec
from vmoe_study.data.workers import BATCHES_AHEAD, iterate_batches

SAMPLE = 200  # Images whose mean size is reported.


@dataclasses.dataclass(frozen=True)
class InputBench:
  """A data set, and three ways to read it.

  "decode" only reads and decodes images, which is the speed limit; "train" and
  "eval" are the pipelines of training and evaluation.

  Attributes:
    name: of the data set.
    split: of the data set.
    data_dir: the TFDS folder; TFDS's default when None.
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
    self, num_workers: Sequence[int], log: Callable[..., None]
  ) -> list[dict[str, Any]]:
    """Measures with each number of worker processes.

    Args:
      num_workers: numbers of worker processes.
      log: called with progress messages, like `logging.info`.

    Returns:
      A row for each: median images/s, their ratios to "decode", and the speedup
      of "train" over the first row.
    """
    rows: list[dict[str, Any]] = []
    for workers in num_workers:
      log("%d worker processes, %d rounds", workers, self.rounds)
      rows.append(self._measure(workers))
      rows[-1]["speedup"] = rows[-1]["train"] / rows[0]["train"]
    return rows

  def _measure(self, workers: int) -> dict[str, Any]:
    """Times the three pipelines in turn; the others wait with full queues."""
    inputs = self._iterators(workers)
    rounds = [
      {
        name: self._images_per_second(batches, workers)
        for name, batches in inputs.items()
      }
      for _ in range(self.rounds)
    ]
    for batches in inputs.values():
      batches.close()
    rates = {
      name: float(np.median([r[name] for r in rounds])) for name in inputs
    }
    ratios = {
      f"{name}/decode": rates[name] / rates["decode"]
      for name in ("train", "eval")
    }
    return {"workers": workers, **rates, **ratios, "rounds": rounds}

  def _iterators(self, workers: int) -> dict[str, Any]:
    source = self.open()
    decoding = (
      grain.MapDataset.range(len(source))
      .shuffle(seed=0)
      .repeat()
      .map(functools.partial(_decode_only, source))
      .batch(self.batch_size)
    )
    train = DataSpec(
      self.name, self.split, self.train_ops, source.num_classes, self.data_dir
    )
    evaluation = dataclasses.replace(train, ops=self.eval_ops)
    sizes = {"batch_size": self.batch_size, "num_workers": workers}
    # Repeats examples, so that one pass is long enough.
    batches = self.rounds * (self.num_batches + _num_warmup(workers))
    indices = np.arange(self.batch_size * batches) % len(source)
    return {
      "decode": iterate_batches(decoding, lambda x: x, workers),
      "train": train_input(train, seed=0, **sizes).iterate(),
      "eval": iter(eval_input(evaluation, indices=indices, **sizes)),
    }

  def _images_per_second(self, batches: Iterator[Batch], workers: int) -> float:
    """Times `num_batches` batches, after those that were prefetched."""
    for _ in itertools.islice(batches, _num_warmup(workers)):
      pass
    start = time.perf_counter()
    count = sum(1 for _ in itertools.islice(batches, self.num_batches))
    return count * self.batch_size / (time.perf_counter() - start)


def _num_warmup(workers: int) -> int:
  return 2 * (workers + 1) * BATCHES_AHEAD


def _decode_only(source: Source, index: int) -> int:
  return decode(source[index]["image"]).size


def describe_images(source: Source) -> str:
  """One line: the number of images, and their mean size."""
  images = [source[i]["image"] for i in range(min(SAMPLE, len(source)))]
  shapes = np.asarray([decode(image).shape for image in images])
  height, width, _ = shapes.mean(0)
  size = np.mean([len(image) for image in images]) / 1000
  return (
    f"{len(source)} images; the first {len(images)} have {height:.0f} x "
    f"{width:.0f} pixels and {size:.0f} kB on average"
  )
