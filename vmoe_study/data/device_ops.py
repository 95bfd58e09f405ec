"""The last part of preprocessing, on the devices, for whole batches.

A batch is transferred to the devices and waits there as bytes: images are
uint8, and labels are class numbers. The operations of a config up to the last
one on uint8 images run on the host (`ops.Ops.steps`); those that compute in
float run here, at the beginning of a compiled step. Mixup follows them.

All functions take NumPy arrays as well as JAX arrays.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vmoe_study.data.augment import value_range
from vmoe_study.data.ops import parse_ops
from vmoe_study.data.spec import DataSpec

NO_LABEL = -1


@dataclasses.dataclass(frozen=True)
class DeviceOps:
  """Turns a batch of bytes into float32 images and label vectors.

  Attributes:
    value_range: value range of the float32 images.
    num_classes: width of the label vectors.
    label_smoothing: share s of the label mass spread over all classes: a vector
      v becomes (1 - s) v + s / num_classes.
  """

  value_range: tuple[float, float]
  num_classes: int
  label_smoothing: float = 0.0

  @classmethod
  def of(cls, spec: DataSpec) -> "DeviceOps":
    """The operations of a data set."""
    limits = parse_ops(spec.ops).value_range
    return cls(limits, spec.num_classes, spec.label_smoothing)

  def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Prepares a batch for the model.

    Args:
      batch: "image" uint8 (B, H, W, C); "label" either int32 (B,), one class
        per image or `NO_LABEL`, or uint8 (B, ceil(classes / 8)), a bit for
        every class (`numpy.packbits`); other entries are kept.

    Returns:
      "image" float32 (B, H, W, C), "label" float32 (B, classes), one-hot or
      multi-hot and smoothed, and the other entries.
    """
    return {
      **batch,
      "image": value_range(batch["image"], *self.value_range),
      "label": self.label_vectors(batch["label"]),
    }

  def label_vectors(self, label: Any) -> Any:
    """The "label" of a batch as float32 (B, classes)."""
    if label.ndim == 1:
      rows = label[:, None] == np.arange(self.num_classes)[None]
    else:
      places = np.arange(8, dtype=np.uint8)[None, None, ::-1]
      bits = label[:, :, None] >> places & 1
      rows = bits.reshape(len(label), -1)[:, : self.num_classes]
    share = np.float32(self.label_smoothing / self.num_classes)
    return rows.astype(np.float32) * (1 - self.label_smoothing) + share


def class_numbers(labels: np.ndarray, owner: np.ndarray, size: int):
  """int32 (size,): the class of each image, or `NO_LABEL`.

  Args:
    labels: classes; `labels[i]` belongs to image `owner[i]`.
    owner: numbers of images; each occurs at most once.
    size: number of images.
  """
  numbers = np.full(size, NO_LABEL, np.int32)
  numbers[owner] = labels
  return numbers


def class_bits(
  labels: np.ndarray, owner: np.ndarray, size: int, num_classes: int
) -> np.ndarray:
  """uint8 (size, ceil(num_classes / 8)): a bit for every class of an image.

  Args:
    labels: classes; `labels[i]` belongs to image `owner[i]`.
    owner: numbers of images; each may occur any number of times.
    size: number of images.
    num_classes: number of bits per image, before padding.
  """
  rows = np.zeros((size, num_classes), bool)
  rows[owner, labels] = True
  return np.packbits(rows, axis=1)
