"""Blocks mix the examples nearly as well as a full shuffle."""

import pytest

from vmoe_study.performance.shuffle_quality import compare


def test_blocks_mix_nearly_as_well_as_single_examples():
  """20 classes in a row of 4000 examples, in blocks of 10."""
  found = compare(4000, 10, 256, 20)
  assert found["full"].distance == pytest.approx(1 / 3, abs=0.02)
  assert found["full"].deviation == pytest.approx(1, abs=0.1)
  assert found["blocks"].distance == pytest.approx(1 / 3, abs=0.05)
  assert found["blocks"].classes > 0.97
  assert 0.9 < found["blocks"].deviation < 2


def test_a_batch_has_no_more_blocks_than_fit_into_memory():
  """128 blocks of 40, each of one of 1000 classes, in a batch of 1024."""
  found = compare(256_000, 40, 1024, 1000)
  assert found["blocks"].classes < 0.2 < 0.6 < found["full"].classes
  assert found["blocks"].distance == pytest.approx(1 / 3, abs=0.02)
