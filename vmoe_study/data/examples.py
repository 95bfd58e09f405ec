"""Reads, decodes and augments single examples."""

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from absl import logging

from vmoe_study.data.classes import ClassNames, number_classes
from vmoe_study.data.decoding import decode
from vmoe_study.data.image_header import ImageError
from vmoe_study.data.ops import Ops, parse_ops
from vmoe_study.data.records import RecordError
from vmoe_study.data.sources import Source, open_source
from vmoe_study.data.spec import DataSpec

Batch = dict[str, np.ndarray]
Example = dict[str, Any]

MAX_REPLACEMENTS = 16
SKIP = "`doctor` finds others, and says how to skip them."
# Decoded images stay in memory if the data set takes no more than this. Tiny
# images cost more to find and decode than to augment.
MAX_KEPT_BYTES = 256 * 2**20


class LabelError(ValueError):
  """A label is outside the range of the class count."""


def check_labels(label: int | Sequence[int], num_classes: int) -> np.ndarray:
  """Returns the labels of one example as int64 (n,).

  Raises:
    LabelError: a label is not in [0, num_classes).
  """
  labels = np.array(label, np.int64, ndmin=1)
  if any(not 0 <= label < num_classes for label in labels.tolist()):
    raise LabelError(
      f"label={label}: must be in [0, {num_classes}). Set num_classes to that "
      "of the data set, or correct the data set."
    )
  return labels


def collate(examples: Iterable[Example], images: np.ndarray) -> Batch:
  """Writes the images of examples into an array, and collates all else.

  Labels stay class numbers: `labels[i]` belongs to example `owner[i]`.

  Args:
    examples: one example for each row of `images`.
    images: uint8 (n, H, W, C), with n > 0; receives each image as soon as it is
      made.

  Returns:
    "labels" and "owner", int64; "mask", float32 (n,); "skipped", int32 (n,).
  """
  rest = []
  for row, example in zip(images, examples, strict=True):
    row[...] = example["image"]
    rest.append((example["labels"], example["mask"], example["skipped"]))
  labels, mask, skipped = zip(*rest, strict=True)
  return {
    "labels": np.concatenate(labels),
    "owner": np.repeat(np.arange(len(labels)), [len(x) for x in labels]),
    "mask": np.asarray(mask, np.float32),
    "skipped": np.asarray(skipped, np.int32),
  }


class ExampleReader:
  """Reads, decodes and augments single examples of a data set.

  An example is a dict of "image" (uint8, H W C), "labels" (int64, n), "mask"
  (float) and "skipped" (int): the number of damaged examples that it replaces.

  Attributes:
    spec: spec of the data set.
    source: the undecoded examples.
    ops: the operations of the spec.
    class_names: names of the labels.
    notes: messages for the user about this data set.
    image_shape: (H, W, C) of every image after the operations.
  """

  def __init__(
    self,
    spec: DataSpec,
    class_names: ClassNames | None = None,
    source: Source | None = None,
  ):
    """Opens the data set and reads one example to find the image shape.

    Args:
      spec: spec of the data set.
      class_names: class names of the run, whose numbers the labels become; None
        to keep the data set's own.
      source: source of the spec, if it is open already.

    Raises:
      MissingDataError: the data set is not prepared; names the command.
      ValueError: there is no such split or label feature, the split is empty,
        or the run lacks one of its classes.
      RecordError: the first example cannot be used.
    """
    self.spec = spec
    self.ops: Ops = parse_ops(spec.ops)
    self.source: Source = source or open_source(spec)
    own = self.source.class_names
    self.class_names = own if class_names is None else class_names
    try:
      self._numbers, notes = number_classes(
        own, self.class_names, spec.num_classes
      )
    except ValueError as error:
      raise ValueError(f"{spec.name}[{spec.split}]: {error}") from error
    self.notes = [*self.source.notes, *notes]
    self.image_shape: tuple[int, ...] | None = None
    self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    self._kept_bytes = 0
    self._named: set[str] = set()  # Damaged examples.
    first = self.read_or_next(0, np.random.default_rng(0))
    self.image_shape = first["image"].shape

  def read(self, index: int, rng: np.random.Generator | None = None) -> Example:
    """Returns example `index`, augmented.

    Raises:
      RecordError: the example cannot be used; names its file and record.
    """
    try:
      image, labels = self._kept.get(index) or self._decode(index)
      image = self.ops(image, rng)
      self._check_shape(image)
    except (ImageError, LabelError, cv2.error) as error:
      raise RecordError(f"{self.source.where(index)}: {error}") from error
    return {"image": image, "labels": labels, "mask": 1.0, "skipped": 0}

  def _handle(self, error: RecordError) -> None:
    """Raises the error or logs it once, depending on the spec's `on_error`."""
    if self.spec.on_error == "raise":
      raise RecordError(f"{error} {SKIP}") from error
    if str(error) not in self._named:
      self._named.add(str(error))
      logging.warning("skipped: %s", error)

  def _decode(self, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Decodes an image, without the operations; returns it and its classes."""
    example, channels = self.source[index], self.source.channels
    image = decode(example["image"], channels, self.spec.max_pixels)
    labels = self._number(example["label"])
    total = self._kept_bytes + image.nbytes
    if len(self.source) * image.nbytes <= MAX_KEPT_BYTES >= total:
      image = np.array(image)  # Not a view of a larger array.
      image.flags.writeable = False
      self._kept[index] = image, labels
      self._kept_bytes = total
    return image, labels

  def _number(self, label: int | Sequence[int]) -> np.ndarray:
    """Maps the class numbers of an example to those of the run."""
    if self._numbers is None:
      return check_labels(label, self.spec.num_classes)
    return self._numbers[check_labels(label, len(self._numbers))]

  def _check_shape(self, image: np.ndarray) -> None:
    if self.image_shape not in (None, image.shape):
      raise ImageError(
        f"ops={self.spec.ops!r}: the image has shape {image.shape} after the "
        f"operations, the first one {self.image_shape}. Fix the shape with "
        "resize or central_crop."
      )

  def read_or_next(self, index: int, rng: np.random.Generator) -> Example:
    """Like `read`, but takes the next intact example if on_error is "skip".

    Raises:
      RecordError: see `read`; or `MAX_REPLACEMENTS` consecutive examples are
        damaged.
    """
    for skipped in range(MAX_REPLACEMENTS):
      try:
        example = self.read((index + skipped) % len(self.source), rng)
        return {**example, "skipped": skipped}
      except RecordError as error:
        self._handle(error)
    raise RecordError(
      f"{self.source.where(index)}: {MAX_REPLACEMENTS} damaged examples in a "
      f"row start here. Prepare data set {self.spec.name!r} again."
    )

  def read_or_mask(self, index: int) -> Example:
    """Like `read`, but "mask" is 0 beyond the end of the data set.

    It is also 0 for examples without a label, because there is nothing to
    compare with, and for damaged examples if on_error is "skip".
    """
    skipped = 0
    if index < len(self.source):
      try:
        example = self.read(index)
        return {**example, "mask": float(example["labels"].size > 0)}
      except RecordError as error:
        self._handle(error)
        skipped = 1
    return {
      "image": np.zeros(self.image_shape, np.uint8),
      "labels": np.zeros(0, np.int64),
      "mask": 0.0,
      "skipped": skipped,
    }
