"""Batches from data sets: training batch n is a pure function of (seed, n).

Training: every epoch is a new permutation of the examples, epochs follow each
other without a gap, and batch n is positions [n*B, (n+1)*B) of that stream.
The random numbers of an example's augmentation come from (seed, position).
Nothing depends on the number of hosts or of worker processes: host h takes the
h-th contiguous slice of every global batch. So there is no state to save.

Evaluation: every example once, in order, the last batch padded and masked.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags, logging

from vmoe_study.data.augment import ImageError, Ops, decode, parse_ops
from vmoe_study.data.records import RecordError
from vmoe_study.data.sources import Source, open_source

Batch = dict[str, np.ndarray]
Example = dict[str, Any]

THREADS = 2  # of this process, where there are no worker processes
BATCHES_AHEAD = 2
MAX_REPLACEMENTS = 16


@dataclasses.dataclass(frozen=True)
class DataSpec:
  """What is read and what is done to it.

  Attributes:
    name: a TFDS name ("name", "name/config").
    split: a TFDS split expression.
    ops: image operations (`augment.OPS`), "inception_crop(224)|flip_lr|...".
    num_classes: the width of the label vectors.
    data_dir: the TFDS folder; TFDS's default when None.
    label_key: the label's feature; the recipe's, else "label", when None.
    label_smoothing: share of the label mass spread over all classes.
    on_error: what a damaged example does: "raise", or "skip": in training the
      next example stands in, in evaluation its mask is 0; both are counted.
  """

  name: str
  split: str
  ops: str
  num_classes: int
  data_dir: str | None = None
  label_key: str | None = None
  label_smoothing: float = 0.0
  on_error: str = "raise"

  def __post_init__(self) -> None:
    parse_ops(self.ops)
    if self.num_classes < 1:
      raise ValueError(
        f"num_classes is {self.num_classes}; it must be at least 1: give the"
        " number of classes of the data set"
      )
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f"label_smoothing is {self.label_smoothing}; it must lie in [0, 1):"
        " 0 switches it off"
      )
    if self.on_error not in ("raise", "skip"):
      raise ValueError(
        f"on_error is {self.on_error!r}; it must be 'raise' or 'skip'"
      )


def check_labels(
  label: int | Sequence[int], num_classes: int, where: str
) -> np.ndarray:
  """Returns the label or labels of one example as int64 (n,).

  Raises:
    RecordError: a label lies outside [0, num_classes).
  """
  labels = np.atleast_1d(np.asarray(label, np.int64))
  if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
    raise RecordError(
      f"{where}: label {label} lies outside [0, {num_classes}); set num_classes"
      " to the data set's, or mend the data set"
    )
  return labels


def collate(examples: Sequence[Example]) -> Batch:
  """Packs examples for the way out of a worker process, as light as can be.

  Images stay bytes, labels stay class numbers: `labels[i]` belongs to example
  `owner[i]`.
  """
  labels = [example["labels"] for example in examples]
  return {
    "image": np.stack([example["image"] for example in examples]),
    "labels": np.concatenate(labels),
    "owner": np.repeat(np.arange(len(labels)), [len(x) for x in labels]),
    "mask": np.asarray([e["mask"] for e in examples], np.float32),
    "skipped": np.asarray([e["skipped"] for e in examples], np.int32),
  }


def label_matrix(
  batch: Batch, num_classes: int, smoothing: float
) -> np.ndarray:
  """Returns float32 (b, num_classes): one-hot or multi-hot rows, smoothed.

  Smoothing s turns a row v into (1 - s) v + s / num_classes.
  """
  rows = np.zeros((len(batch["image"]), num_classes), np.float32)
  rows[batch["owner"], batch["labels"]] = 1 - smoothing
  if smoothing:
    rows += np.float32(smoothing / num_classes)
  return rows


class Loader:
  """Reads, decodes and augments single examples of one data set.

  An example is a dict of "image" (uint8, H W C), "labels" (int64, n), "mask"
  (float) and "skipped" (int).

  Attributes:
    source: the examples.
    ops: what is done to the images.
    image_shape: (H, W, C) of every image after the operations.
  """

  def __init__(self, spec: DataSpec):
    """Opens the data set and loads one example to learn the image's shape."""
    self.spec = spec
    self.ops: Ops = parse_ops(spec.ops)
    self.source: Source = open_source(
      spec.name, spec.split, spec.data_dir, spec.label_key
    )
    self.image_shape: tuple[int, ...] | None = None
    first = self.load_or_next(0, np.random.default_rng(0))
    self.image_shape = first["image"].shape

  def load(
    self, index: int, rng: np.random.Generator | None = None
  ) -> Example:
    """Returns example `index`, augmented.

    Raises:
      RecordError: naming the record, whatever is wrong with it.
    """
    where = self.source.where(index)
    example = self.source[index]
    try:
      image = self.ops(decode(example["image"], self.source.channels), rng)
    except ImageError as error:
      raise RecordError(f"{where}: {error}") from error
    if self.image_shape not in (None, image.shape):
      raise RecordError(
        f"{where}: the image's shape is {image.shape} after {self.spec.ops!r},"
        f" but {self.image_shape} before; let the operations fix the shape,"
        " e.g. with resize or central_crop"
      )
    labels = check_labels(example["label"], self.spec.num_classes, where)
    return {"image": image, "labels": labels, "mask": 1.0, "skipped": 0}

  def load_or_next(self, index: int, rng: np.random.Generator) -> Example:
    """As `load`; where damaged examples are skipped, the next one stands in."""
    for skipped in range(MAX_REPLACEMENTS):
      try:
        example = self.load((index + skipped) % len(self.source), rng)
        return {**example, "skipped": skipped}
      except RecordError as error:
        if self.spec.on_error == "raise":
          raise
        logging.warning("skipped: %s", error)
    raise RecordError(
      f"{MAX_REPLACEMENTS} damaged examples in a row from"
      f" {self.source.where(index)}; prepare data set {self.spec.name!r} again"
    )

  def load_or_mask(self, index: int) -> Example:
    """As `load`, with "mask" 0 beyond the end of the data set.

    The mask is also 0 for an example without any label (there is no truth to
    count it against) and, where damaged examples are skipped, for such a one.
    """
    skipped = 0
    if index < len(self.source):
      try:
        example = self.load(index)
        return {**example, "mask": float(example["labels"].size > 0)}
      except RecordError as error:
        if self.spec.on_error == "raise":
          raise
        logging.warning("masked: %s", error)
        skipped = 1
    return {
      "image": np.zeros(self.image_shape, np.uint8),
      "labels": np.zeros(0, np.int64),
      "mask": 0.0,
      "skipped": skipped,
    }


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


class _Input:
  """What training and evaluation inputs share.

  Attributes:
    num_examples: examples in all data sets together, over all hosts.
    num_classes: the width of the label vectors.
    image_shape: (H, W, C).
    skipped: damaged examples passed over or masked so far, on this host.
  """

  def __init__(self, loaders: Sequence[Loader], num_examples: int):
    self.num_examples = num_examples
    self.num_classes = loaders[0].spec.num_classes
    self.image_shape = loaders[0].image_shape
    self.skipped = 0
    self._smoothing = loaders[0].spec.label_smoothing
    self._ops = loaders[0].ops

  def _finish(self, batch: Batch) -> Batch:
    """From bytes and class numbers to float32 images and label vectors."""
    self.skipped += int(batch["skipped"].sum())
    return {
      "image": self._ops.finish(batch["image"]),
      "label": label_matrix(batch, self.num_classes, self._smoothing),
      "mask": batch["mask"],
    }


class TrainInput(_Input):
  """An endless stream of training batches; see the module's docstring.

  Attributes:
    batch_size: the global batch size.
  """

  def __init__(
    self,
    loaders: Sequence[Loader],
    stream: grain.MapDataset,
    batch_size: int,
    num_workers: int,
  ):
    """Takes this host's collated batches as `stream`."""
    super().__init__(loaders, sum(len(loader.source) for loader in loaders))
    self.batch_size = batch_size
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
  _check_mixture(mixture)
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed is {seed}; it must lie in [0, 2**32)")
  host_batch = _host_batch_size(batch_size, process_count)
  loaders = [Loader(spec) for spec, _ in mixture]
  streams = [
    grain.MapDataset.range(len(loader.source))
    .seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
    .shuffle()
    .repeat()
    .random_map(loader.load_or_next)
    for number, loader in enumerate(loaders)
  ]
  stream = streams[0]
  if len(streams) > 1:
    stream = grain.MapDataset.mix(streams, [weight for _, weight in mixture])
  batches = stream.batch(host_batch, batch_fn=collate)
  local = batches[process_index::process_count]
  return TrainInput(loaders, local, batch_size, num_workers)


def _check_mixture(mixture: Mixture) -> None:
  """Raises ValueError unless weights are positive and batches agree."""
  for spec, weight in mixture:
    if not weight > 0:
      raise ValueError(
        f"the weight of {spec.name!r} is {weight}; it must be positive: leave"
        " the data set out instead"
      )
  first = mixture[0][0]
  for field in ("num_classes", "label_smoothing"):
    values = {spec.name: getattr(spec, field) for spec, _ in mixture}
    if set(values.values()) != {getattr(first, field)}:
      raise ValueError(
        f"the mixed data sets have {field} {values}; give all the same"
      )
  ranges = {spec.name: parse_ops(spec.ops).value_range for spec, _ in mixture}
  if len(set(ranges.values())) > 1:
    raise ValueError(
      f"the mixed data sets have value_range {ranges}; give all the same"
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
