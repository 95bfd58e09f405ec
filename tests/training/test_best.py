"""The best evaluation, against lists of values."""

import math

import pytest

from vmoe_study.training.best import BestSoFar, BestSpec

NAN = math.nan


@pytest.mark.parametrize(
  ("metric", "values", "best", "waited"),
  [
    ("test/accuracy", [0.1, 0.3, 0.2], 1, 1),
    ("test/accuracy", [0.3, 0.3], 0, 1),
    ("test/loss", [0.1, 0.3, 0.05], 2, 0),
    ("fewshot/digits/5shot", [0.1, 0.3], 1, 0),
    ("test/loss", [NAN, 0.3, NAN, 0.4], 1, 2),
    ("test/loss", [NAN, NAN], -1, 2),
  ],
)
def test_the_best_of_a_list(metric, values, best, waited):
  so_far = BestSoFar(BestSpec(metric, patience=2))
  rows = [{"step": s, metric: v} for s, v in enumerate(values)]
  so_far.replay([{"step": 0, "train/loss": -9.0}, *rows])
  assert (so_far.step, so_far.evaluations_since_best) == (best, waited)
  assert so_far.value == values[best] or best < 0
  assert so_far.is_exhausted == (waited >= 2)


def test_without_patience_it_waits_for_ever():
  so_far = BestSoFar(BestSpec("a/loss"))
  so_far.replay({"step": s, "a/loss": s} for s in range(100))
  assert so_far.evaluations_since_best == 99 and not so_far.is_exhausted
