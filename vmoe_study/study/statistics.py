"""Means, intervals and paired tests over seeds."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean and how well it is known.

  Attributes:
    mean: of the sample; NaN if it is empty.
    half_width: of the 95% Student t interval; NaN for fewer than two values.
    count: of values.
  """

  mean: float
  half_width: float
  count: int


def estimate(values: Sequence[float]) -> Estimate:
  """Mean and interval of independent values."""
  count = len(values)
  mean = float(np.mean(values)) if count else math.nan
  if count < 2:
    return Estimate(mean, math.nan, count)
  quantile = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)
  error = np.std(values, ddof=1) / math.sqrt(count)
  return Estimate(mean, float(quantile * error), count)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A paired comparison of two treatments.

  Attributes:
    difference: of the pairs, first minus second.
    p_value: of the two-sided paired t-test; NaN for fewer than two pairs.
  """

  difference: Estimate
  p_value: float


def compare(first: Sequence[float], second: Sequence[float]) -> Comparison:
  """Compares values that come in pairs, as of one seed each.

  Raises:
    ValueError: if there are not as many of one as of the other.
  """
  if len(first) != len(second):
    raise ValueError(
      f"{len(first)} and {len(second)} values: a paired comparison needs as "
      "many of one as of the other."
    )
  differences = np.subtract(first, second)
  found = estimate(differences)
  if found.count < 2:
    return Comparison(found, math.nan)
  if not np.ptp(differences):  # The t-test would divide zero by zero.
    return Comparison(found, 1.0 if not found.mean else 0.0)
  return Comparison(found, float(stats.ttest_rel(first, second).pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
  """Adjusts p-values of one family of tests (Holm, 1979).

  The smallest of m is multiplied by m, the next by m - 1, and so on; none
  falls below one before it, or exceeds 1. NaN stays NaN and does not count.
  """
  adjusted = [math.nan] * len(p_values)
  known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
  highest = 0.0
  for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
    highest = max(highest, min(1.0, (len(known) - rank) * p_values[i]))
    adjusted[i] = highest
  return adjusted
