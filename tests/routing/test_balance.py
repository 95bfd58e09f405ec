"""Balance losses against plain loops in NumPy."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.routing import balance
from vmoe_study.routing.choice import token_choice

from . import oracles

G, S, E = 2, 9, 4


@pytest.fixture(scope="module")
def logits():
  return np.random.default_rng(0).normal(size=(G, S, E)).astype(np.float32)


@pytest.fixture(scope="module")
def noisy(logits):
  noise = np.random.default_rng(1).normal(size=(G, S, E)) / E
  return (logits + noise).astype(np.float32)


def _variation(loads):
  return np.std(loads) ** 2 / np.mean(loads) ** 2


def test_importance(logits):
  gates = oracles.softmax(logits)
  expected = [_variation(group.sum(axis=0)) for group in gates]
  loss = balance.importance_loss(jnp.float32(gates))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("K", [1, 2, E])
def test_load(logits, noisy, K):
  sigma = 1 / E
  expected = []
  for clean_group, noisy_group in zip(logits, noisy, strict=True):
    chance = np.zeros((S, E))
    for s in range(S):
      threshold = sorted(noisy_group[s])[-K]
      for e in range(E):
        z = (threshold - clean_group[s, e]) / sigma
        chance[s, e] = math.erfc(z / math.sqrt(2)) / 2
    expected.append(_variation(chance.mean(axis=0)))
  loss = balance.load_loss(jnp.asarray(logits), jnp.asarray(noisy), sigma, K)
  np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_gshard(logits):
  gates = oracles.softmax(logits)
  expected = []
  for group in gates:
    first = [np.mean(group.argmax(axis=1) == e) for e in range(E)]
    terms = [first[e] * group[:, e].mean() for e in range(E)]
    expected.append(E**2 * np.mean(terms))
  loss = balance.gshard_loss(jnp.float32(gates))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_router_z(logits):
  expected = np.mean(oracles.logsumexp(np.float64(logits), axis=2) ** 2, axis=1)
  loss = balance.router_z_loss(jnp.asarray(logits))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_losses_of_perfect_balance():
  gates = jnp.tile(jnp.eye(E), (G, 2, 1))
  np.testing.assert_allclose(balance.importance_loss(gates), 0, atol=1e-6)
  np.testing.assert_allclose(balance.gshard_loss(gates), 1, rtol=1e-6)


def test_aux_weighs_losses_and_counts_tokens(logits):
  scores = jnp.asarray(logits)
  plan = token_choice(scores, scores, num_selected_experts=1, capacity=2)
  losses = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([10.0, 20.0])}
  aux = balance.routing_aux(plan, losses, {"a": 0.5, "b": 0.0, "c": 3.0})
  np.testing.assert_allclose(aux.auxiliary_loss, [0.5, 1.0])
  assert aux.losses == losses
  for group in range(G):
    best = logits[group].argmax(axis=1)
    served = np.minimum(np.bincount(best, minlength=E), 2)
    np.testing.assert_array_equal(aux.tokens_per_expert[group], served)
    unprocessed = 1 - served.sum() / S
    np.testing.assert_allclose(aux.unprocessed[group], unprocessed, rtol=1e-6)
