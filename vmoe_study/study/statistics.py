"""Means, confidence intervals and paired tests over seeds."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy  # `scipy.stats` is loaded at its first use: it takes a second.

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A sample mean with its confidence interval.

  Attributes:
    mean: sample mean; NaN for an empty sample.
    half_width: half-width of the 95% Student t interval; NaN for fewer than two
      values.
    count: number of values.
  """

  mean: float
  half_width: float
  count: int


def estimate(values: Sequence[float]) -> Estimate:
  """Mean and 95% interval of independent values.

  >>> estimate([1.0, 2.0, 3.0]).mean
  2.0
  """
  count = len(values)
  mean = float(np.mean(values)) if count else math.nan
  if count < 2:
    return Estimate(mean, math.nan, count)
  quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
  error = np.std(values, ddof=1) / math.sqrt(count)
  return Estimate(mean, float(quantile * error), count)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A paired comparison of two samples.

  Attributes:
    difference: mean of first minus second over the pairs.
    p_value: p-value of the two-sided paired t-test; NaN for fewer than two
      pairs.
  """

  difference: Estimate
  p_value: float


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
  """Compares two samples pair by pair, such as two models seed by seed.

  Raises:
    ValueError: the samples differ in length.
  """
  if len(first) != len(second):
    raise ValueError(
      f"len(first)={len(first)}, len(second)={len(second)}: must be equal for "
      "a paired comparison. Keep the seeds that both sides have."
    )
  differences = np.subtract(first, second)
  found = estimate(differences)
  if found.count < 2:
    return Comparison(found, math.nan)
  if not np.ptp(differences):  # The t-test would divide zero by zero.
    return Comparison(found, 1.0 if not found.mean else 0.0)
  p_value = scipy.stats.ttest_rel(first, second).pvalue
  return Comparison(found, float(p_value))


def holm(p_values: Sequence[float]) -> list[float]:
  """Adjusts the p-values of a family of tests by the method of Holm (1979).

  The smallest of m p-values is multiplied by m, the next by m - 1, and so on.
  An adjusted value is at least the previous one and at most 1. NaN stays NaN
  and does not count towards m.

  >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
  [0.03, 0.06, 0.06]
  """
  adjusted = [math.nan] * len(p_values)
  known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
  highest = 0.0
  for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
    highest = max(highest, min(1.0, (len(known) - rank) * p_values[i]))
    adjusted[i] = highest
  return adjusted
