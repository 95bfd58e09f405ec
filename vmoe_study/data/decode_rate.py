"""Measures how many images of a data set one core decodes per second."""

import copy
import time

import numpy as np

from vmoe_study.data.examples import ExampleReader
from vmoe_study.data.order import Window
from vmoe_study.data.read_ahead import ReadAhead

IMAGES = 16


def decode_rate(reader: ExampleReader) -> float:
  """Decodes and augments a few images of a data set, which are read beforehand.

  Returns:
    Images per second, for one thread of this process.

  Raises:
    RecordError: an image cannot be used.
  """
  indices = range(min(IMAGES, len(reader.source)))
  rng = np.random.default_rng(0)
  reader = copy.copy(reader)
  reader.source = ReadAhead(reader.source)
  reader.source.expect(Window.of(indices).runs)
  reader.read_or_next(0, rng)
  start = time.perf_counter()
  for index in indices:
    reader.read_or_next(index, rng)
  return len(indices) / (time.perf_counter() - start)


def describe_rate(rate: float, num_workers: int) -> str:
  """One line on the decoding rate of this host's workers."""
  core = f"a core decodes {rate:,.0f} images/s of the training data"
  if not num_workers:
    return f"{core}; threads of this process do it"
  return (
    f"{core}; with num_workers={num_workers}, this host at most "
    f"{num_workers * rate:,.0f} images/s"
  )
