"""Interleaved timings and their ratios."""

import time

import numpy as np

from vmoe_study.performance.timing import interleaved_seconds, paired_ratio


def test_ratios_are_paired():
  calls = {
    "slow": lambda: time.sleep(0.02),
    "fast": lambda: time.sleep(0.01),
  }
  rounds = []
  seconds = interleaved_seconds(calls, 3, rounds.append)
  assert rounds == [0, 1, 2]
  assert all((s > 0.009).all() for s in seconds.values())
  known = {"a": np.array([2.0, 9.0, 4.0]), "b": np.array([1.0, 3.0, 4.0])}
  assert paired_ratio(known, "a", "b") == 2.0
