"""Controllers: their updates by hand, and what they achieve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.routing.controller import (
  ExpertThreshold,
  LoadBias,
  SparsityControl,
)

G, S, E, K = 3, 256, 4, 2
POPULAR = np.array([1.0, 0.5, 0.0, -0.5])  # What experts are worth to tokens.


def _scores(seed=0):
  rng = np.random.default_rng(seed)
  return np.float32(rng.normal(size=(G, S, E)) + POPULAR)


def _step(controller, scores, state):
  """A training step's update, by the mean over groups."""
  copies = jax.tree.map(lambda x: jnp.broadcast_to(x, (G, *x.shape)), state)
  found = controller.statistics(jnp.asarray(scores), copies, K)
  means = {name: jnp.mean(values, axis=0) for name, values in found.items()}
  return controller.update(state, means)


def _demand(scores):
  """The share of tokens that have each expert among their K best."""
  best = np.argsort(-scores, axis=2)[..., :K]
  return np.bincount(best.ravel(), minlength=E) / (G * S)


def test_a_bias_moves_against_demand():
  controller, scores = LoadBias(bias_update_rate=0.1), _scores()
  bias = np.float32([0.3, 0.0, -0.2, 0.1])
  demand = _demand(scores + bias)
  expected = bias + 0.1 * np.sign(demand.mean() - demand)
  found = _step(controller, scores, {"bias": jnp.asarray(bias)})
  np.testing.assert_allclose(found["bias"], expected, rtol=1e-6)


def test_biases_balance_the_load():
  controller = LoadBias(bias_update_rate=0.02)
  state = controller.initial_state(E)
  assert np.ptp(_demand(_scores())) > 0.3
  for seed in range(100):
    state = _step(controller, _scores(seed), state)
  found = _demand(_scores(1000) + np.asarray(state["bias"]))
  assert np.ptp(found) < 0.15


def test_the_loss_of_sparsity_control():
  weights = np.maximum(_scores(), 0)
  state = {"coefficient": jnp.full(G, 0.5)}
  found = SparsityControl().losses(jnp.asarray(weights), state, K)
  load = (weights > 0).mean(axis=1) * E / K
  expected = 0.5 * (load[:, None] * weights).sum(axis=2).mean(axis=1)
  np.testing.assert_allclose(found["sparsity_loss"], expected, rtol=1e-5)


@pytest.mark.parametrize(
  "shift, factor", [(2.0, 1.5), (-2.0, 1 / 1.5), (None, 1.0)]
)
def test_the_coefficient_follows_the_number_of_experts(shift, factor):
  controller = SparsityControl(coefficient_update_factor=1.5)
  if shift is None:  # Exactly K positive scores.
    scores = np.tile(np.float32([1, -1, 1, -1]), (G, S, 1))
  else:
    scores = _scores() + shift
  state = _step(controller, jnp.asarray(scores), {"coefficient": jnp.ones(())})
  np.testing.assert_allclose(state["coefficient"], factor, rtol=1e-6)


def test_a_threshold_is_the_average_of_what_expert_choice_would_take():
  controller, scores = ExpertThreshold(threshold_decay=0.75), _scores()
  old = np.float32([0.1, 0.2, 0.3, 0.4])
  count = S * K // E
  reached = np.sort(scores, axis=1)[:, -count].mean(axis=0)
  found = _step(controller, scores, {"threshold": jnp.asarray(old)})
  expected = 0.75 * old + 0.25 * reached
  np.testing.assert_allclose(found["threshold"], expected, rtol=1e-5)


def test_thresholds_give_experts_their_share():
  controller = ExpertThreshold(threshold_decay=0.9)
  state = controller.initial_state(E)
  for seed in range(60):
    state = _step(controller, _scores(seed), state)
  scores = _scores(1000) - np.asarray(state["threshold"])
  np.testing.assert_allclose((scores > 0).mean(axis=(0, 1)), K / E, atol=0.1)
