"""Batches from data sets: training batch n is a pure function of (seed, n).

Training: every epoch is a new permutation of the examples, epochs follow each
other without a gap, and batch n is positions [n*B, (n+1)*B) of this sequence.
The random numbers of an example's augmentation come from (seed, position).
Nothing depends on the number of hosts or of worker processes: host h takes the
h-th contiguous slice of every global batch. So there is no state to save.

Evaluation: every example once, in order; the last batch is padded and masked.

Batches are bytes, which `device_ops` turns into what the model gets.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from vmoe_study.data.classes import ClassNames, training_classes
from vmoe_study.data.device_ops import DeviceOps, class_bits, class_numbers
from vmoe_study.data.examples import Batch, ExampleReader, collate
from vmoe_study.data.ops import parse_ops
from vmoe_study.data.sources import open_source
from vmoe_study.data.spec import DataSpec
from vmoe_study.data.workers import iterate_batches

Mixture = Sequence[tuple[DataSpec, float]]


class _Input:
  """Common parts of training and evaluation inputs.

  Attributes:
    num_examples: examples in all data sets together, over all hosts.
    image_shape: (H, W, C).
    device_ops: turns a batch into float32 images and label vectors.
    class_names: by class number; empty if the classes have only numbers.
    notes: what the user should know of the data sets.
    skipped: damaged examples skipped or masked so far, on this host.
  """

  def __init__(
    self,
    readers: Sequence[ExampleReader],
    batches: grain.MapDataset,
    num_examples: int,
    num_workers: int,
  ):
    """Takes this host's collated batches and the readers of their examples."""
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
    self._many_labels = any(reader.source.many_labels for reader in readers)
    self._batches = batches
    self._num_workers = num_workers

  def _finish(self, batch: Batch) -> Batch:
    """Turns a collated batch into the form that travels to the devices."""
    self.skipped += int(batch["skipped"].sum())
    labels = batch["labels"], batch["owner"], len(batch["image"])
    return {
      "image": batch["image"],
      "label": class_bits(*labels, self.device_ops.num_classes)
      if self._many_labels
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
    readers: Sequence[ExampleReader],
    batches: grain.MapDataset,
    order: grain.MapDataset,
    batch_size: int,
    num_workers: int,
  ):
    """Also takes `order`: (reader, example) for every position."""
    num_examples = sum(len(reader.source) for reader in readers)
    super().__init__(readers, batches, num_examples, num_workers)
    self.batch_size = batch_size
    self._order = order
    self._specs = [reader.spec for reader in readers]

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
    return self._finish(self._batches[step])

  def examples(self, step: int) -> list[tuple[str, int]]:
    """Data set and index of each example in the global batch of `step`.

    Reads no data. If a damaged example is skipped, the batch has the next one.
    """
    first = step * self.batch_size
    pairs = [self._order[first + row] for row in range(self.batch_size)]
    specs = [self._specs[number] for number, _ in pairs]
    names = [f"{spec.name}[{spec.split}]" for spec in specs]
    return [(n, int(i)) for n, (_, i) in zip(names, pairs, strict=True)]

  def iterate(self, start_step: int = 0) -> Iterator[Batch]:
    """Yields the batches of `start_step` and all later steps.

    Close the iterator (or let it be collected) to end its worker processes.
    """
    batches = self._batches[start_step:]
    return iterate_batches(batches, self._finish, self._num_workers)


class EvalInput(_Input):
  """A data set in batches; can be iterated several times."""

  def __len__(self) -> int:
    """Number of batches: the same on every host."""
    return len(self._batches)

  def decode_first(self) -> None:
    """Decodes this host's part of the first batch, and drops it.

    Raises:
      RecordError: an example cannot be used.
    """
    self._batches[0]

  def __iter__(self) -> Iterator[Batch]:
    """Yields "image" and "label" as `TrainInput` does, and a "mask".

    The mask is float32 (b,), 0 for examples that do not count.
    """
    return iterate_batches(self._batches, self._finish, self._num_workers)


def train_input(
  spec: DataSpec | Mixture,
  *,
  batch_size: int,
  seed: int,
  class_names: ClassNames | None = None,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
) -> TrainInput:
  """Opens the training input.

  Args:
    spec: a data set, or several with weights: examples are drawn from each in
      proportion to its weight.
    batch_size: global batch size.
    seed: determines order and augmentation; in [0, 2**32).
    class_names: of the run, which number its classes; None for those of the
      data sets, in order.
    process_index: number of this host.
    process_count: number of hosts.
    num_workers: worker processes; 0 uses threads of this process.

  Raises:
    MissingDataError: a data set is not prepared; names the command.
    ValueError: batch size, seed or mixture are invalid, or the head or the run
      does not have one of the classes.
  """
  mixture = [(spec, 1.0)] if isinstance(spec, DataSpec) else list(spec)
  _check_weights(mixture)
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed={seed}: must be in [0, 2**32).")
  host_batch = _host_batch_size(batch_size, process_count)
  sources = [open_source(spec) for spec, _ in mixture]
  if class_names is None:
    class_names = training_classes(sources, mixture[0][0].num_classes)
  readers = [
    ExampleReader(spec, class_names, source)
    for (spec, _), source in zip(mixture, sources, strict=True)
  ]
  _check_agreement(readers)
  orders = [
    grain.MapDataset.range(len(reader.source))
    .seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
    .shuffle()
    .repeat()
    for number, reader in enumerate(readers)
  ]
  weights = [weight for _, weight in mixture]
  examples = [
    order.random_map(reader.read_or_next)
    for order, reader in zip(orders, readers, strict=True)
  ]
  batches = _mix(examples, weights).batch(host_batch, batch_fn=collate)
  local = batches[process_index::process_count]
  numbered = [
    order.map(functools.partial(_numbered, number))
    for number, order in enumerate(orders)
  ]
  order = _mix(numbered, weights)
  return TrainInput(readers, local, order, batch_size, num_workers)


def _host_batch_size(batch_size: int, process_count: int) -> int:
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f"batch_size={batch_size}: must be a positive multiple of the number of "
      f"processes, {process_count}. Change it to one."
    )
  return batch_size // process_count


def _mix(
  sequences: Sequence[grain.MapDataset], weights: Sequence[float]
) -> grain.MapDataset:
  if len(sequences) == 1:
    return sequences[0]
  return grain.MapDataset.mix(sequences, weights)


def _numbered(number: int, index: int) -> tuple[int, int]:
  return number, index


def _check_weights(mixture: Mixture) -> None:
  for spec, weight in mixture:
    if not weight > 0:
      raise ValueError(
        f"weight={weight}: must be positive for data set {spec.name!r}. Leave "
        "the data set out instead."
      )


def _check_agreement(readers: Sequence[ExampleReader]) -> None:
  """Raises ValueError unless examples of all readers fit into one batch."""
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
) -> EvalInput:
  """Opens an evaluation input: every example once, in order.

  Args:
    spec: the data set; its operations must not be random.
    batch_size: global batch size.
    class_names: of the run, whose numbers the labels become; None to keep those
      of the data set.
    process_index: number of this host.
    process_count: number of hosts.
    indices: the examples to take, in this order; all of them when None.
    num_workers: worker processes; 0 uses threads of this process.

  Raises:
    MissingDataError: the data set is not prepared; names the command.
    ValueError: operations are random, the batch size is invalid, or the run
      does not have one of the classes.
  """
  if parse_ops(spec.ops).is_random:
    raise ValueError(
      f"ops={spec.ops!r}: evaluation must not draw random numbers. Use "
      "deterministic operations such as resize_small and central_crop."
    )
  host_batch = _host_batch_size(batch_size, process_count)
  reader = ExampleReader(spec, class_names)
  if indices is None:
    indices = np.arange(len(reader.source))
  num_batches = -(-len(indices) // batch_size)
  padding = num_batches * batch_size - len(indices)
  order = np.pad(indices, (0, padding), constant_values=len(reader.source))
  batches = (
    grain.MapDataset.source(order)
    .map(reader.read_or_mask)
    .batch(host_batch, batch_fn=collate)
  )
  local = batches[process_index::process_count]
  return EvalInput([reader], local, len(indices), num_workers)
