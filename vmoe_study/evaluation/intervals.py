"""Confidence intervals of proportions, such as an accuracy over images."""

from typing import NamedTuple

import numpy as np
import scipy
from jaxtyping import Float
from numpy.typing import ArrayLike

CONFIDENCE = 0.95


class Proportion(NamedTuple):
  """Shares with their 95% Wilson intervals; NaN where there is nothing.

  Attributes:
    value: successes / total.
    low: lower end of the interval.
    high: upper end of the interval.
  """

  value: Float[np.ndarray, "..."]
  low: Float[np.ndarray, "..."]
  high: Float[np.ndarray, "..."]


def wilson(successes: ArrayLike, total: ArrayLike) -> Proportion:
  """Shares with the score intervals of Wilson (1927), for independent trials.

  The interval holds the proportions p that a test does not reject: those with
  (value - p)^2 <= z^2 p (1 - p) / total, where z is the normal quantile. Unlike
  value +- z * error, it stays in [0, 1] and has a width at 0 and 1.

  Args:
    successes: numbers of successes, of any shape.
    total: numbers of trials, of the same shape.

  >>> low, high = wilson(9, 10)[1:]
  >>> round(float(low), 3), round(float(high), 3)
  (0.596, 0.982)
  """
  total = np.where(np.equal(total, 0), np.nan, np.asarray(total, float))
  value = np.asarray(successes, float) / total
  z2 = scipy.stats.norm.ppf((1 + CONFIDENCE) / 2) ** 2
  centre = (value + z2 / (2 * total)) / (1 + z2 / total)
  variance = value * (1 - value) / total + z2 / (4 * total**2)
  half_width = np.sqrt(z2 * variance) / (1 + z2 / total)
  low, high = centre - half_width, centre + half_width
  # Rounding must not put an end beyond the value.
  return Proportion(value, np.minimum(low, value), np.maximum(high, value))
