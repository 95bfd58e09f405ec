"""Batches from data sets: training batch n is a pure function of (seed, n).

Training: every epoch is a new permutation of the examples, epochs follow each
other without a gap, and batch n is positions [n*B, (n+1)*B) of that stream.
The random numbers of an example's augmentation come from (seed, position).
Nothing depends on the number of hosts or of worker processes: host h takes the
h-th contiguous slice of every global batch. So there is no state to save.

Evaluation: every example once, in order, the last batch padded and masked.
"""

import functools
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from vmoe_study.data.augment import parse_ops
from vmoe_study.data.examples import (
  Batch,
  DataSpec,
  Loader,
  collate,
  label_matrix,
)

THREADS = 2  # of this process, where there are no worker processes
BATCHES_AHEAD = 2


def _host_batch_size(batch_size: int, process_count: int) -> int:
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f"batch_size is {batch_size}; it must be a positive multiple of the"
      f" {process_count} processes: change it to one"
    )
  return batch_size // process_count


class Batches:
  """Batches by number, in this process or ahead of time in others."""

  def __init__(
    self,
    batches: grain.MapDataset,
    finish: Callable[[Batch], Batch],
    num_workers: int,
  ):
    """Takes collated batches and what `finish`es them in this process."""
    self._batches = batches
    self._finish = finish
    self._workers = grain.MultiprocessingOptions(
      num_workers, per_worker_buffer_size=BATCHES_AHEAD
    )

  def __getitem__(self, number: int) -> Batch:
    return self._finish(self._batches[number])

  def iterate(self, start: int = 0) -> Iterator[Batch]:
    """Yields batches `start`, `start` + 1, ... prepared ahead of time."""
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain's workers ask for absl flags
    threads = 1 if self._workers.num_workers else THREADS
    reading = grain.ReadOptions(threads, prefetch_buffer_size=BATCHES_AHEAD)
    dataset = self._batches[start:].to_iter_dataset(reading)
    iterator = iter(dataset.mp_prefetch(self._workers, _start_worker))
    try:
      for batch in iterator:
        yield self._finish(batch)
    finally:
      iterator.close()


def _start_worker(index: int, count: int) -> None:
  """One OpenCV thread in each worker process: the workers share the cores."""
  del index, count
  cv2.setNumThreads(1)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """A process that is killed cannot end its workers: they see it end."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


class _Input:
  """What training and evaluation inputs share.

  Attributes:
    num_examples: examples in all data sets together, over all hosts.
    num_classes: the width of the label vectors.
    image_shape: (H, W, C).
    value_range: of the images.
    label_names: of the classes; their numbers where mixed data sets differ.
    label_smoothing: share of the label mass spread over all classes.
    skipped: damaged examples passed over or masked so far, on this host.
  """

  def __init__(self, loaders: Sequence[Loader], num_examples: int):
    self.num_examples = num_examples
    self.num_classes = loaders[0].spec.num_classes
    self.image_shape = loaders[0].image_shape
    self.skipped = 0
    self.label_smoothing = loaders[0].spec.label_smoothing
    self.label_names = _label_names(loaders)
    self._ops = loaders[0].ops
    self.value_range = self._ops.value_range

  def _finish(self, batch: Batch) -> Batch:
    """From bytes and class numbers to float32 images and label vectors."""
    self.skipped += int(batch["skipped"].sum())
    return {
      "image": self._ops.finish(batch["image"]),
      "label": label_matrix(batch, self.num_classes, self.label_smoothing),
      "mask": batch["mask"],
    }


def _label_names(loaders: Sequence[Loader]) -> Sequence[str]:
  names = {tuple(loader.source.label_names) for loader in loaders}
  numbers = [str(number) for number in range(loaders[0].spec.num_classes)]
  own = list(names.pop()) if len(names) == 1 else []
  return own + numbers[len(own) :]


class TrainInput(_Input):
  """An endless stream of training batches; see the module's docstring.

  Attributes:
    batch_size: the global batch size.
  """

  def __init__(
    self,
    loaders: Sequence[Loader],
    stream: grain.MapDataset,
    order: grain.MapDataset,
    batch_size: int,
    num_workers: int,
  ):
    """Takes this host's collated batches as `stream`, and what they hold.

    `order` has for every position (number of the loader, example).
    """
    super().__init__(loaders, sum(len(loader.source) for loader in loaders))
    self.batch_size = batch_size
    self._order = order
    self._specs = [loader.spec for loader in loaders]
    self._batches = Batches(stream, self._finish_training, num_workers)

  def _finish_training(self, batch: Batch) -> Batch:
    finished = self._finish(batch)
    return {"image": finished["image"], "label": finished["label"]}

  def __getitem__(self, step: int) -> Batch:
    """Returns this host's slice of the global batch of `step`.

    Returns:
      {"image": float32 (b, H, W, C), "label": float32 (b, num_classes)}, with
      b the global batch size over the number of hosts.
    """
    return self._batches[step]

  def examples(self, step: int) -> list[tuple[str, int]]:
    """Data set and example of each row of the global batch of `step`.

    Reads no data. For a damaged example that is passed over, the next one is
    in the batch.
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
    return self._batches.iterate(start_step)


class EvalInput(_Input):
  """One pass over a data set, as often as it is iterated."""

  def __init__(
    self,
    loader: Loader,
    stream: grain.MapDataset,
    num_examples: int,
    num_workers: int,
  ):
    """Takes this host's collated batches, padding included, as `stream`."""
    super().__init__([loader], num_examples)
    self._num_batches = len(stream)
    self._batches = Batches(stream, self._finish, num_workers)

  def __len__(self) -> int:
    """Batches per pass: the same on every host."""
    return self._num_batches

  def __iter__(self) -> Iterator[Batch]:
    """Yields {"image", "label", "mask"}, all float32; mask is (b,)."""
    return self._batches.iterate()


Mixture = Sequence[tuple[DataSpec, float]]


def train_input(
  spec: DataSpec | Mixture,
  *,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  num_workers: int = 0,
) -> TrainInput:
  """Opens the training input.

  Args:
    spec: one data set, or several with weights: examples are then drawn from
      each in proportion to its weight.
    batch_size: the global batch size.
    seed: 0 <= seed < 2**32; fixes order and augmentation.
    process_index: this host's number.
    process_count: the number of hosts.
    num_workers: worker processes; 0 works in threads of this process.

  Raises:
    MissingDataError: a data set is not prepared; names the command.
    ValueError: a batch size, seed or mixture that cannot be.
  """
  mixture = [(spec, 1.0)] if isinstance(spec, DataSpec) else list(spec)
  _check_weights(mixture)
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed is {seed}; it must lie in [0, 2**32)")
  host_batch = _host_batch_size(batch_size, process_count)
  loaders = [Loader(spec) for spec, _ in mixture]
  _check_agreement(loaders)
  orders = [
    grain.MapDataset.range(len(loader.source))
    .seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
    .shuffle()
    .repeat()
    for number, loader in enumerate(loaders)
  ]
  weights = [weight for _, weight in mixture]
  loaded = [
    order.random_map(loader.load_or_next)
    for order, loader in zip(orders, loaders, strict=True)
  ]
  batches = _mix(loaded, weights).batch(host_batch, batch_fn=collate)
  local = batches[process_index::process_count]
  numbered = [
    order.map(functools.partial(_numbered, number))
    for number, order in enumerate(orders)
  ]
  order = _mix(numbered, weights)
  return TrainInput(loaders, local, order, batch_size, num_workers)


def _mix(
  streams: Sequence[grain.MapDataset], weights: Sequence[float]
) -> grain.MapDataset:
  return (
    streams[0] if len(streams) == 1 else grain.MapDataset.mix(streams, weights)
  )


def _numbered(number: int, index: int) -> tuple[int, int]:
  return number, index


def _check_weights(mixture: Mixture) -> None:
  for spec, weight in mixture:
    if not weight > 0:
      raise ValueError(
        f"the weight of {spec.name!r} is {weight}; it must be positive: leave"
        " the data set out instead"
      )


def _check_agreement(loaders: Sequence[Loader]) -> None:
  """Raises ValueError unless examples of all loaders fit into one batch."""
  properties: dict[str, list[Any]] = {
    "num_classes": [loader.spec.num_classes for loader in loaders],
    "label_smoothing": [loader.spec.label_smoothing for loader in loaders],
    "value_range": [loader.ops.value_range for loader in loaders],
    "image shape": [loader.image_shape for loader in loaders],
  }
  for name, values in properties.items():
    if len(set(values)) > 1:
      raise ValueError(
        f"the mixed data sets differ in {name}: {values}; make it the same"
      )


def eval_input(
  spec: DataSpec,
  *,
  batch_size: int,
  process_index: int = 0,
  process_count: int = 1,
  indices: Sequence[int] | np.ndarray | None = None,
  num_workers: int = 0,
) -> EvalInput:
  """Opens an evaluation input: every example once, in order.

  Args:
    spec: the data set; its operations must not be random.
    batch_size: the global batch size.
    process_index: this host's number.
    process_count: the number of hosts.
    indices: the examples to take, in this order; all of them when None.
    num_workers: worker processes; 0 works in threads of this process.

  Raises:
    MissingDataError: the data set is not prepared; names the command.
    ValueError: random operations, or a batch size that cannot be.
  """
  if parse_ops(spec.ops).is_random:
    raise ValueError(
      f"evaluation operations {spec.ops!r} draw random numbers; use"
      " deterministic ones such as resize_small and central_crop"
    )
  host_batch = _host_batch_size(batch_size, process_count)
  loader = Loader(spec)
  if indices is None:
    indices = np.arange(len(loader.source))
  num_batches = -(-len(indices) // batch_size)
  padding = num_batches * batch_size - len(indices)
  order = np.pad(indices, (0, padding), constant_values=len(loader.source))
  batches = (
    grain.MapDataset.source(order)
    .map(loader.load_or_mask)
    .batch(host_batch, batch_fn=collate)
  )
  local = batches[process_index::process_count]
  return EvalInput(loader, local, len(indices), num_workers)
