"""Statistics, compared with SciPy and with known cases."""

import math

import numpy as np
import pytest
from scipy import stats

from vmoe_study.study.statistics import compare, estimate, holm


def test_interval_agrees_with_scipy():
  values = [0.81, 0.84, 0.79, 0.90, 0.83]
  found = estimate(values)
  low, high = stats.t.interval(
    0.95, 4, loc=np.mean(values), scale=stats.sem(values)
  )
  assert found.count == 5
  np.testing.assert_allclose(
    [found.mean - found.half_width, found.mean + found.half_width], [low, high]
  )


def test_interval_covers_the_mean_in_95_percent_of_samples():
  rng = np.random.default_rng(0)
  found = [estimate(sample) for sample in rng.normal(3.0, 2.0, (2000, 5))]
  covered = np.mean([abs(f.mean - 3.0) <= f.half_width for f in found])
  assert 0.935 < covered < 0.965


@pytest.mark.parametrize("values", [[], [0.5]])
def test_too_few_values_have_no_interval(values):
  found = estimate(values)
  assert math.isnan(found.half_width)
  assert math.isnan(found.mean) == (not values)


def test_paired_comparison_agrees_with_scipy():
  first = np.array([0.81, 0.84, 0.79, 0.90])
  second = np.array([0.80, 0.82, 0.79, 0.86])
  found = compare(first, second)
  result = stats.ttest_rel(first, second)
  np.testing.assert_allclose(found.p_value, result.pvalue)
  interval = result.confidence_interval(0.95)
  difference = found.difference
  np.testing.assert_allclose(
    [
      difference.mean - difference.half_width,
      difference.mean + difference.half_width,
    ],
    [interval.low, interval.high],
  )


def test_pairing_detects_what_an_unpaired_test_does_not():
  seeds = np.array([0.0, 10.0, 20.0, 30.0])
  first = seeds + [1.0, 1.1, 0.9, 1.0]
  assert compare(first, seeds).p_value < 0.001
  assert stats.ttest_ind(first, seeds).pvalue > 0.9


def test_equal_differences_have_a_p_value():
  assert compare([1.0, 2.0], [1.0, 2.0]).p_value == 1.0
  assert compare([2.0, 3.0], [1.0, 2.0]).p_value == 0.0


def test_samples_of_different_lengths_are_an_error():
  with pytest.raises(ValueError, match="must be equal"):
    compare([1, 2], [1, 2, 3])


def test_holm_on_a_worked_example():
  # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; running maximum.
  adjusted = holm([0.01, 0.04, 0.03, 0.005])
  np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])


def test_holm_ignores_tests_without_a_p_value():
  adjusted = holm([0.01, math.nan, 0.6])
  assert math.isnan(adjusted[1])
  np.testing.assert_allclose([adjusted[0], adjusted[2]], [0.02, 0.6])
