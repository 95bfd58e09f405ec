"""The model of a grid of runs: value = cell + seed + error, by least squares.

One error variance is pooled over all cells, so that a contrast of few seeds has
many degrees of freedom. Seeds have effects because the runs of a seed share
initial parameters and the order of images. Runs may be missing.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import scipy  # `scipy.stats` is loaded at its first use: it takes a second.

from vmoe_study.study.statistics import CONFIDENCE


@dataclasses.dataclass(frozen=True)
class Effect:
  """An estimated difference between cells, in the unit of the values.

  Attributes:
    estimate: estimated difference.
    standard_error: standard error of the estimate; 0 where all residuals are 0.
    degrees: degrees of freedom of the pooled error variance.
  """

  estimate: float
  standard_error: float
  degrees: int

  @property
  def half_width(self) -> float:
    """Half-width of the 95% interval."""
    quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, self.degrees)
    return float(quantile * self.standard_error)

  @property
  def p_value(self) -> float:
    """The p-value of the two-sided test that there is no difference."""
    return 2 * self._tail(abs(self.estimate))

  def equivalence_p_value(self, margin: float) -> float:
    """The p-value of the test that the difference is at least `margin` in size.

    Two one-sided tests (Schuirmann 1987): below 0.05, the true difference is
    smaller than the margin.
    """
    return self._tail(margin - abs(self.estimate))

  def _tail(self, distance: float) -> float:
    """Probability of a larger standardized distance."""
    if not self.standard_error:
      return float(distance <= 0)
    return float(scipy.stats.t.sf(distance / self.standard_error, self.degrees))


class GridFit:
  """Least-squares fit of the values of a grid."""

  def __init__(self, values: Mapping[str, Mapping[int, float]]):
    """Fits the model.

    Args:
      values: cell to seed to value; every cell has at least one value.

    Raises:
      ValueError: there are too few runs to estimate the error variance, or the
        cells share too few seeds to be compared.
    """
    self._cells = list(values)
    seeds = sorted({seed for runs in values.values() for seed in runs})
    rows = [(c, seed, y) for c, r in values.items() for seed, y in r.items()]
    design = np.zeros((len(rows), len(self._cells) + len(seeds)))
    for i, (cell, seed, _) in enumerate(rows):
      design[i, self._cells.index(cell)] = 1
      design[i, len(self._cells) + seeds.index(seed)] = 1
    rank = np.linalg.matrix_rank(design) if rows else 0
    self.degrees = len(rows) - int(rank)
    # One dimension is free: a constant shifts between cells and seeds.
    if self.degrees < 1 or rank < design.shape[1] - 1:
      raise ValueError(
        f"{len(self._cells)} cells with {len(rows)} runs of {len(seeds)} "
        "seeds: too few to estimate the error, or without common seeds. Run "
        "more seeds of every cell."
      )
    y = np.array([value for _, _, value in rows])
    self._inverse = np.linalg.pinv(design.T @ design)
    self._effects = self._inverse @ design.T @ y
    residuals = y - design @ self._effects
    self.error_variance = float(residuals @ residuals) / self.degrees

  def contrast(self, weights: Mapping[str, float]) -> Effect:
    """The effect: the sum of cells times weights.

    Args:
      weights: weights by cell, which add up to 0. Omitted cells have weight 0.
    """
    vector = np.zeros_like(self._effects)
    for cell, weight in weights.items():
      vector[self._cells.index(cell)] += weight
    variance = self.error_variance * float(vector @ self._inverse @ vector)
    return Effect(
      float(vector @ self._effects), math.sqrt(variance), self.degrees
    )


def detectable_difference(
  standard_error: float, degrees: int, level: float, power: float
) -> float:
  """Smallest true difference that a two-sided t-test detects at this power.

  Args:
    standard_error: standard error of the estimated difference.
    degrees: degrees of freedom of the error variance.
    level: level of the test, such as 0.05.
    power: probability of detection, in (level, 1).

  Returns:
    The difference, in the unit of the standard error.
  """
  critical = float(scipy.stats.t.ppf(1 - level / 2, degrees))

  def missing_power(shift: float) -> float:
    # The other tail, a difference of the wrong sign, is not counted.
    return power - float(scipy.stats.nct.sf(critical, degrees, shift))

  largest = 3 * critical + 5
  return standard_error * scipy.optimize.brentq(missing_power, 0.0, largest)
