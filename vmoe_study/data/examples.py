"""Single examples: what is read, decoded and augmented, and in what form."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from vmoe_study.data.augment import ImageError, Ops, decode, parse_ops
from vmoe_study.data.records import RecordError
from vmoe_study.data.sources import Source, open_source

Batch = dict[str, np.ndarray]
Example = dict[str, Any]

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


class LabelError(ValueError):
  """A label that the class count does not allow."""


def check_labels(label: int | Sequence[int], num_classes: int) -> np.ndarray:
  """Returns the label or labels of one example as int64 (n,).

  Raises:
    LabelError: a label lies outside [0, num_classes).
  """
  labels = np.array(label, np.int64, ndmin=1)
  if any(not 0 <= label < num_classes for label in labels.tolist()):
    raise LabelError(
      f"label {label} lies outside [0, {num_classes}); set num_classes to the"
      " data set's, or mend the data set"
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
    """Opens the data set and loads one example to learn the image's shape.

    Raises:
      MissingDataError: the data set is not prepared; names the command.
      ValueError: no such split or label feature, or an empty split.
    """
    self.spec = spec
    self.ops: Ops = parse_ops(spec.ops)
    self.source: Source = open_source(
      spec.name, spec.split, spec.data_dir, spec.label_key
    )
    self.image_shape: tuple[int, ...] | None = None
    first = self.load_or_next(0, np.random.default_rng(0))
    self.image_shape = first["image"].shape

  def load(self, index: int, rng: np.random.Generator | None = None) -> Example:
    """Returns example `index`, augmented.

    Raises:
      RecordError: naming the record, whatever is wrong with it.
    """
    example = self.source[index]
    try:
      image = self.ops(decode(example["image"], self.source.channels), rng)
      self._check_shape(image)
      labels = check_labels(example["label"], self.spec.num_classes)
    except (ImageError, LabelError) as error:
      raise RecordError(f"{self.source.where(index)}: {error}") from error
    return {"image": image, "labels": labels, "mask": 1.0, "skipped": 0}

  def _check_shape(self, image: np.ndarray) -> None:
    if self.image_shape not in (None, image.shape):
      raise ImageError(
        f"the image's shape is {image.shape} after {self.spec.ops!r}, but"
        f" {self.image_shape} before; let the operations fix the shape, e.g."
        " with resize or central_crop"
      )

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
