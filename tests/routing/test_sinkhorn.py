"""Sinkhorn transport plans against float64, for logits of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.routing.sinkhorn import log_form, scaling_form, sinkhorn

from . import oracles

S, E = 12, 4


def _against_float64(logits, tolerance):
  transport_plan = sinkhorn(jnp.asarray(logits, jnp.float32))
  expected = [oracles.sinkhorn(np.float32(group)) for group in logits]
  np.testing.assert_allclose(transport_plan, expected, atol=tolerance)


@pytest.mark.parametrize(
  "std, tolerance", [(0.1, 1e-6), (1, 1e-6), (4, 1e-5), (20, 1e-5), (100, 1e-4)]
)
def test_plans(std, tolerance):
  logits = std * np.random.default_rng(0).normal(size=(3, S, E))
  _against_float64(logits, tolerance)


def _one_peak(random):
  logits = np.zeros((S, E))
  logits[3, 1] = 1
  return logits


def _one_pit(random):
  return 1 - _one_peak(random)


def _popular_expert(random):
  return np.repeat([[1, 0, 0, 0]], S, axis=0)


def _unpopular_expert(random):
  return 1 - _popular_expert(random)


def _blocks(random):
  return np.repeat(np.eye(E), S // E, axis=0)


def _uneven_blocks(random):
  return np.eye(E)[np.minimum(np.arange(S), E - 1)]


def _staircase(random):
  return np.add.outer(np.linspace(0, 0.5, S), np.linspace(0, 0.5, E))


def _triangle(random):
  return np.greater.outer(np.arange(S), np.arange(E)) * 1.0


def _coins(random):
  return random.integers(0, 2, size=(S, E))


def _uniform(random):
  return random.uniform(size=(S, E))


@pytest.mark.parametrize("spread", [39.9, 40.1, 350.0])
@pytest.mark.parametrize(
  "structure",
  [
    _one_peak,
    _one_pit,
    _popular_expert,
    _unpopular_expert,
    _blocks,
    _uneven_blocks,
    _staircase,
    _triangle,
    _coins,
    _uniform,
  ],
)
def test_both_sides_of_the_switch_of_form(structure, spread):
  logits = structure(np.random.default_rng(0)) * 1.0
  logits = spread * (logits - logits.min()) / np.ptp(logits)
  for shift in (-500, 0, 500):
    _against_float64(logits[None] + shift, tolerance=1e-4)


@pytest.mark.parametrize("structure", [_one_peak, _unpopular_expert])
def test_many_tokens_at_the_edge_of_the_scaling_form(structure):
  """Sums over the kernel reach e^49; u and v stay within their bounds."""
  logits = np.repeat(39.9 * structure(np.random.default_rng(0)), 834, axis=0)
  transport_plan = scaling_form(logits[None], 20)[0]
  np.testing.assert_allclose(
    transport_plan, oracles.sinkhorn(np.float32(logits)), atol=1e-4
  )


@pytest.mark.parametrize("std", [1e2, 1e4, 1e6])
def test_rows_are_exact_at_huge_logits(std):
  logits = std * np.random.default_rng(0).normal(size=(2, S, E))
  rows = log_form(logits, 20).sum(axis=2)
  np.testing.assert_allclose(rows, 1, rtol=1e-6)


def test_a_group_of_wide_range_does_not_affect_others():
  logits = np.random.default_rng(0).normal(size=(2, S, E))
  logits[1] *= 1000
  _against_float64(logits, tolerance=1e-3)


@pytest.mark.parametrize("std", [1, 15])
def test_gradient(std):
  random = np.random.default_rng(0)
  logits = np.float32(std * random.normal(size=(S, E)))
  values = np.float32(random.normal(size=(S, E)))
  assert (np.ptp(logits) > 40) == (std == 15)

  def total(logits):
    return jnp.sum(sinkhorn(logits)[0] * values)

  gradient = jax.grad(total)(jnp.asarray(logits[None]))[0]
  step = 1e-5
  for s, e in [(0, 0), (3, 1), (7, 2), (11, 3)]:
    moved = np.zeros((S, E))
    moved[s, e] = step
    up, down = (
      oracles.sinkhorn(logits + moved),
      oracles.sinkhorn(logits - moved),
    )
    expected = np.sum((up - down) * values) / (2 * step)
    np.testing.assert_allclose(gradient[s, e], expected, atol=1e-4)


def test_rows_are_exact_after_any_number_of_iterations():
  logits = 4 * jax.random.normal(jax.random.key(0), (2, S, E))
  errors = []
  for num_iterations in (1, 5, 200):
    transport_plan = sinkhorn(logits, num_iterations)
    np.testing.assert_allclose(transport_plan.sum(axis=2), 1, rtol=1e-5)
    errors.append(abs(transport_plan.sum(axis=1) - S / E).max())
  assert errors[0] > errors[1] > errors[2]
  assert errors[2] < 1e-4
