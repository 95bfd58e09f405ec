"""Single examples: what stays in memory after it was decoded."""

import numpy as np
import pytest

from vmoe_study.data import examples
from vmoe_study.data.examples import ExampleReader
from vmoe_study.data.spec import DataSpec

OPS = "pad_crop(2)|rgb|value_range(0, 1)"


def reader(folder):
  return ExampleReader(DataSpec("digits", "train", OPS, 10, str(folder)))


def read_twice(reader):
  """Every example twice, with the same draws."""
  return [
    [reader.read(i, np.random.default_rng(i)) for i in range(20)]
    for _ in range(2)
  ]


class Unreadable:
  """A source that has become unreadable."""

  def __init__(self, source):
    self._source = source

  def __getattr__(self, name):
    return getattr(self._source, name)

  def __len__(self):
    return len(self._source)

  def __getitem__(self, index):
    raise AssertionError(f"example {index} was read again")


def test_small_data_sets_are_read_and_decoded_once(digits_folder):
  kept = reader(digits_folder)
  first, second = read_twice(kept)
  for one, two in zip(first, second, strict=True):
    np.testing.assert_array_equal(one["image"], two["image"])
    np.testing.assert_array_equal(one["labels"], two["labels"])
  kept.source = Unreadable(kept.source)
  read_twice(kept)
  with pytest.raises(AssertionError, match="read again"):
    kept.read(21)


def test_operations_cannot_change_what_is_kept(digits_folder):
  kept = reader(digits_folder)
  kept.ops = lambda image, rng: image.fill(0)
  with pytest.raises(ValueError, match="read-only"):
    kept.read(3)
    kept.read(3)


def test_large_data_sets_are_not_kept(digits_folder, monkeypatch):
  size = len(reader(digits_folder).source) * 64
  monkeypatch.setattr(examples, "MAX_KEPT_BYTES", size - 1)
  forgetful = reader(digits_folder)
  first, second = read_twice(forgetful)
  np.testing.assert_array_equal(first[3]["image"], second[3]["image"])
  forgetful.source = Unreadable(forgetful.source)
  with pytest.raises(AssertionError, match="read again"):
    forgetful.read(3)
