"""Batches from data sets: training batch n is a pure function of (seed, n).

Training: every epoch is a new permutation of the examples, epochs follow each
other without a gap, and batch n is positions [n*B, (n+1)*B) of this sequence.
The random numbers of an example's augmentation come from (seed, position).
Nothing depends on the number of hosts or of worker processes: host h takes the
h-th contiguous slice of every global batch. So there is no state to save.

Evaluation: every example once, in order; the last batch is padded and masked.

Batches are bytes, which `device_ops` converts to model inputs.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vmoe_study.data.classes import ClassNames, check_folders, training_classes
from vmoe_study.data.device_ops import DeviceOps, class_bits, class_numbers
from vmoe_study.data.examples import Batch, ExampleReader
from vmoe_study.data.ops import parse_ops
from vmoe_study.data.order import BlockOrder, FullOrder, Order, num_lanes
from vmoe_study.data.parts import EvalParts, HostRows, TrainParts, join
from vmoe_study.data.read_ahead import READ_THREADS
from vmoe_study.data.sources import Source, open_source
from vmoe_study.data.spec import DataSpec
from vmoe_study.data.workers import shared_workers

Mixture = Sequence[tuple[DataSpec, float]]


class _Input:
  """Common parts of training and evaluation inputs.

  Attributes:
    num_examples: examples in all data sets together, over all hosts.
    image_shape: (H, W, C).
    device_ops: converts a batch to float32 images and label vectors.
    class_names: names by class number; empty if the classes have only numbers.
    many_labels: whether an image may have several labels, or none.
    notes: messages for the user about the data sets.
    skipped: number of damaged examples skipped or masked so far, on this host.
    parts: the parts of batches that workers compute.
    reading: requests to object stores, bytes read, and seconds that workers
      have waited for them so far, on this host.
  """

  def __init__(
    self,
    readers: Sequence[ExampleReader],
    parts: TrainParts | EvalParts,
    num_examples: int,
    num_workers: int,
  ):
    """Takes the parts of the batches and the readers of their examples."""
    first = readers[0]
    self.num_examples = num_examples
    self.image_shape = first.image_shape
    self.device_ops = DeviceOps.of(first.spec)
    self.class_names = first.class_names
    self.notes = [
      f"{reader.spec.name}[{reader.spec.split}]: {note}"
      for reader in readers
      for note in reader.notes
    ]
    self.skipped = 0
    self.reading = np.zeros(3)
    self.many_labels = any(reader.source.many_labels for reader in readers)
    self.parts = parts
    self._workers = shared_workers(num_workers)

  def _batch(self, step: int) -> Batch:
    """This host's slice of a batch, computed in this thread."""
    images = np.empty(self.parts.shape, np.uint8)
    part = self.parts.open(0, 1, examples_ahead=0)(step, images)
    return self._finish(join(images, [part]))

  def _iterate(self, steps: Iterable[int]) -> Iterator[Batch]:
    parts = self._workers.iterate(self.parts, steps)
    with contextlib.closing(parts):
      yield from map(self._finish, itertools.starmap(join, parts))

  def _finish(self, batch: Batch) -> Batch:
    """Converts a collated batch to the form that is sent to the devices."""
    self.skipped += int(batch["skipped"].sum())
    self.reading += batch["reading"]
    labels = batch["labels"], batch["owner"], len(batch["image"])
    return {
      "image": batch["image"],
      "label": class_bits(*labels, self.device_ops.num_classes)
      if self.many_labels
      else class_numbers(*labels),
      "mask": batch["mask"],
    }


class TrainInput(_Input):
  """An endless sequence of training batches; see the module's docstring.

  Attributes:
    batch_size: global batch size.
  """

  def __init__(
    self,
    parts: TrainParts,
    num_workers: int,
  ):
    """Takes the parts of the batches."""
    num_examples = sum(len(reader.source) for reader in parts.readers)
    super().__init__(parts.readers, parts, num_examples, num_workers)
    self.batch_size = parts.rows.batch_size
    self.parts: TrainParts = parts

  def _finish(self, batch: Batch) -> Batch:
    finished = super()._finish(batch)
    return {"image": finished["image"], "label": finished["label"]}

  def __getitem__(self, step: int) -> Batch:
    """Returns this host's slice of the global batch of `step`.

    Returns:
      {"image": uint8 (b, H, W, C), "label": int32 (b,)}, with b the global
      batch size divided by the number of hosts. If images may have several
      labels, "label" is uint8 (b, ceil(classes / 8)), see `DeviceOps`.
    """
    return self._batch(step)

  def examples(self, step: int) -> list[tuple[str, int]]:
    """Data set and index of each example in the global batch of `step`.

    Reads no data. If a damaged example is skipped, the batch has the next one.
    """
    specs = [reader.spec for reader in self.parts.readers]
    names = [f"{spec.name}[{spec.split}]" for spec in specs]
    return [(names[n], i) for n, i in self.parts.examples(step)]

  def iterate(self, start_step: int = 0) -> Iterator[Batch]:
    """Yields the batches of `start_step` and all later steps.

    Close the iterator (or let it be garbage-collected) to stop its work.
    """
    return self._iterate(itertools.count(start_step))


class EvalInput(_Input):
  """A data set in batches; can be iterated several times."""

  def __len__(self) -> int:
    """Number of batches: the same on every host."""
    return len(self.parts)

  def decode_first(self) -> None:
    """Decodes this host's part of the first batch and discards it.

    Raises:
      RecordError: an example cannot be used.
    """
    self._batch(0)

  def __iter__(self) -> Iterator[Batch]:
    """Yields "image" and "label" as `TrainInput` does, and a "mask".

    The mask is float32 (b,), 0 for examples that do not count.
    """
    return self._iterate(range(len(self)))


def train_input(
  spec: DataSpec | Mixture,
  *,
  batch_size: int,
  seed: int,
  class_names: ClassNames | None = None,
  shuffle: str = "auto",
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
  read_threads: int = READ_THREADS,
) -> TrainInput:
  """Opens the training input.

  Args:
    spec: a data set, or several with weights; each contributes examples in
      proportion to its weight.
    batch_size: global batch size.
    seed: seed of order and augmentation, in [0, 2**32).
    class_names: class names of the run, which number its classes; None for
      those of the data sets, in order.
    shuffle: "full", "blocks" (see `order`), or "auto", which is "blocks" for
      data sets in an object store.
    process_index: number of this host.
    process_count: number of hosts.
    num_workers: number of worker processes, shared by all inputs with the same
      number; 0 uses threads of this process.
    read_threads: number of concurrent requests to an object store per worker.

  Raises:
    MissingDataError: a data set is not prepared; names the command.
    ValueError: the batch size, the seed or the mixture is invalid, a class
      folder has no images, or the head or the run lacks one of the classes.
  """
  mixture = [(spec, 1.0)] if isinstance(spec, DataSpec) else list(spec)
  _check_weights(mixture)
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed={seed}: must be in [0, 2**32).")
  rows = _host_rows(batch_size, process_index, process_count)
  sources = [open_source(spec) for spec, _ in mixture]
  for source in sources:
    check_folders(source)
  if class_names is None:
    class_names = training_classes(sources, mixture[0][0].num_classes)
  readers = [
    ExampleReader(spec, class_names, source)
    for (spec, _), source in zip(mixture, sources, strict=True)
  ]
  _check_agreement(readers)
  blocks = [
    source.blocks() if _in_blocks(source, shuffle) else None
    for source in sources
  ]
  most = max(0 if found is None else len(found) - 1 for found in blocks)
  lanes = num_lanes(batch_size, most)
  seeds = [
    int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    for number in range(len(readers))
  ]
  orders: list[Order] = [
    FullOrder(len(reader.source), seed)
    if found is None
    else BlockOrder(found, seed, lanes)
    for reader, seed, found in zip(readers, seeds, blocks, strict=True)
  ]
  weights = [weight for _, weight in mixture]
  parts = TrainParts(readers, orders, weights, rows, lanes, read_threads)
  return TrainInput(parts, num_workers)


def _in_blocks(source: Source, shuffle: str) -> bool:
  return source.is_remote if shuffle == "auto" else shuffle == "blocks"


def _host_rows(
  batch_size: int, process_index: int, process_count: int
) -> HostRows:
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f"batch_size={batch_size}: must be a positive multiple of the number of "
      f"processes, {process_count}. Change it to one."
    )
  return HostRows(batch_size, process_index, process_count)


def _check_weights(mixture: Mixture) -> None:
  for spec, weight in mixture:
    if not weight > 0:
      raise ValueError(
        f"weight={weight}: must be positive for data set {spec.name!r}. Leave "
        "the data set out instead."
      )


def _check_agreement(readers: Sequence[ExampleReader]) -> None:
  """Raises ValueError unless examples of all readers can share a batch."""
  properties: dict[str, list[Any]] = {
    "num_classes": [reader.spec.num_classes for reader in readers],
    "label_smoothing": [reader.spec.label_smoothing for reader in readers],
    "value_range": [reader.ops.value_range for reader in readers],
    "image shape": [reader.image_shape for reader in readers],
  }
  for name, values in properties.items():
    if len(set(values)) > 1:
      raise ValueError(
        f"mixture: the mixed data sets differ in {name}: {values}. Make it the "
        "same."
      )


def eval_input(
  spec: DataSpec,
  *,
  batch_size: int,
  class_names: ClassNames | None = None,
  process_index: int = 0,
  process_count: int = 1,
  indices: Sequence[int] | np.ndarray | None = None,
  num_workers: int = 0,
  read_threads: int = READ_THREADS,
) -> EvalInput:
  """Opens an evaluation input: every example once, in order.

  Args:
    spec: the data set; its operations must not be random.
    batch_size: global batch size.
    class_names: class names of the run, whose numbers the labels become; None
      to keep the data set's own.
    process_index: number of this host.
    process_count: number of hosts.
    indices: indices of the examples to use, in this order; None for all.
    num_workers: number of worker processes, shared by all inputs with the same
      number; 0 uses threads of this process.
    read_threads: number of concurrent requests to an object store per worker.

  Raises:
    MissingDataError: the data set is not prepared; names the command.
    ValueError: the operations are random, the batch size is invalid, or the run
      lacks one of the classes.
  """
  if parse_ops(spec.ops).is_random:
    raise ValueError(
      f"ops={spec.ops!r}: evaluation must not draw random numbers. Use "
      "deterministic operations such as resize_small and central_crop."
    )
  rows = _host_rows(batch_size, process_index, process_count)
  reader = ExampleReader(spec, class_names)
  if indices is None:
    indices = np.arange(len(reader.source))
  num_batches = -(-len(indices) // batch_size)
  padding = num_batches * batch_size - len(indices)
  order = np.pad(indices, (0, padding), constant_values=len(reader.source))
  parts = EvalParts(reader, order, rows, read_threads)
  return EvalInput([reader], parts, len(indices), num_workers)
