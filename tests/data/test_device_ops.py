"""Bytes become images and label vectors: in NumPy, and compiled."""

import jax
import numpy as np
import pytest

from vmoe_study.data.device_ops import (
  NO_LABEL,
  DeviceOps,
  class_bits,
  class_numbers,
)
from vmoe_study.data.spec import DataSpec

CLASSES = 11
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 3, 5, 3)).astype(np.uint8)
LABELS = [[2], [], [10], [0]]
MANY = [[2, 9], [], [10, 0, 0], [8]]


def collated(labels):
  """As `examples.collate` makes them, and the number of images."""
  owner = np.repeat(np.arange(len(labels)), [len(x) for x in labels])
  return np.concatenate(labels).astype(np.int64), owner, len(labels)


def expected(labels, smoothing):
  rows = np.zeros((len(labels), CLASSES))
  for row, classes in zip(rows, labels, strict=True):
    row[classes] = 1
  return (1 - smoothing) * rows + smoothing / CLASSES


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("many", [False, True])
def test_images_and_labels(compiled, smoothing, many):
  labels = MANY if many else LABELS
  packed = (
    class_bits(*collated(labels), CLASSES)
    if many
    else class_numbers(*collated(labels))
  )
  assert packed.dtype == (np.uint8 if many else np.int32)
  assert packed.shape == ((4, 2) if many else (4,))
  ops = "resize(5)|value_range(-1, 3)"
  spec = DataSpec("x", "train", ops, CLASSES, label_smoothing=smoothing)
  device_ops = DeviceOps.of(spec)
  call = jax.jit(device_ops) if compiled else device_ops
  found = call({"image": IMAGES, "label": packed, "mask": np.ones(4)})

  table = np.linspace(-1, 3, 256)  # The value of every byte.
  np.testing.assert_allclose(found["image"], table[IMAGES], atol=3e-7)
  np.testing.assert_allclose(
    found["label"], expected(labels, smoothing), rtol=1e-6
  )
  assert found["image"].dtype == found["label"].dtype == np.float32
  assert found["mask"].shape == (4,)


def test_no_label_is_no_class():
  assert class_numbers(*collated(LABELS)).tolist() == [2, NO_LABEL, 10, 0]
