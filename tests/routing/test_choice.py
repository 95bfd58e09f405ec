"""Both choices against plain loops in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.routing.affinity import SparseTransport
from vmoe_study.routing.choice import expert_choice, token_choice

from . import oracles

SHAPE = G, S, E = 3, 10, 4


@pytest.fixture(scope="module")
def distinct():
  return np.random.default_rng(0).uniform(size=SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def tied():
  scores = np.random.default_rng(1).integers(0, 3, size=SHAPE)
  return scores.astype(np.float32)


@pytest.fixture(scope="module")
def contested():
  """All tokens prefer expert 2, then expert 0."""
  scores = np.random.default_rng(2).uniform(size=SHAPE).astype(np.float32)
  return scores + np.float32([1, 0, 2, 0])


@pytest.fixture(params=["distinct", "tied", "contested"])
def scores(request):
  return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def weights():
  return np.random.default_rng(3).uniform(size=SHAPE).astype(np.float32)


def _expected(slots_of, scores, weights, C):
  tensors = [
    oracles.routing_tensors(slots_of(s), w, C)
    for s, w in zip(scores, weights, strict=True)
  ]
  return map(np.stack, zip(*tensors, strict=True))


def _assert_plan(plan, dispatch, combine):
  for form in (plan, plan.to_dense()):
    np.testing.assert_array_equal(form.dispatch_tensor(), dispatch)
    np.testing.assert_allclose(form.combine_tensor(), combine, rtol=1e-6)


@pytest.mark.parametrize("batch_priority", [False, True])
@pytest.mark.parametrize("C", [1, 3, 12])
@pytest.mark.parametrize("K", [1, 2, E])
def test_token_choice(scores, weights, K, C, batch_priority):
  plan = token_choice(
    jnp.asarray(scores),
    jnp.asarray(weights),
    num_selected_experts=K,
    capacity=C,
    batch_priority=batch_priority,
  )
  slots_of = functools.partial(
    oracles.token_choice, K=K, C=C, batch_priority=batch_priority
  )
  dispatch, combine = _expected(slots_of, scores, weights, C)
  _assert_plan(plan, dispatch, combine)


@pytest.mark.parametrize("batch_priority", [False, True])
@pytest.mark.parametrize("C", [1, 3, 12])
@pytest.mark.parametrize("K", [1, 2, E])
def test_tokens_do_not_choose_zero_scores_if_told_so(
  tied, weights, K, C, batch_priority
):
  scores = np.maximum(tied - 1, 0)  # A third is positive; none of some tokens.
  options = {"batch_priority": batch_priority, "fill_zero_scores": False}
  plan = token_choice(
    scores, weights, num_selected_experts=K, capacity=C, **options
  )
  slots_of = functools.partial(oracles.token_choice, K=K, C=C, **options)
  dispatch, combine = _expected(slots_of, scores, weights, C)
  _assert_plan(plan, dispatch, combine)
  assert np.any(scores.max(axis=2) == 0)
  assert plan.slots.max() == E * C  # Marks a dropped choice.
  per_token = dispatch.sum(axis=(2, 3))
  np.testing.assert_array_equal(plan.experts_per_token(), per_token)
  y = np.random.default_rng(4).uniform(size=(E, G, C, 2)).astype(np.float32)
  dense = plan.to_dense().combine(y)
  np.testing.assert_allclose(plan.combine(y), dense, rtol=1e-5)


def test_a_sparse_transport_plan_does_not_overload_the_first_expert():
  logits = 0.1 * np.random.default_rng(0).normal(size=(1, 196, 32))
  scores = SparseTransport()(logits, 6)
  loads = {}
  for fill in (True, False):
    plan = token_choice(
      scores,
      scores,
      num_selected_experts=1,
      capacity=196,
      fill_zero_scores=fill,
    )
    loads[fill] = plan.tokens_per_expert()[0]
  assert loads[True][0] > 196 / 2
  assert loads[False].max() <= 6
  np.testing.assert_array_equal(loads[False][1:], loads[True][1:])


@pytest.mark.parametrize("C", [1, 3, S, 12])
def test_expert_choice(scores, weights, C):
  plan = expert_choice(jnp.asarray(scores), jnp.asarray(weights), capacity=C)
  slots_of = functools.partial(oracles.expert_choice, C=C)
  dispatch, combine = _expected(slots_of, scores, weights, C)
  _assert_plan(plan, dispatch, combine)


def test_batch_priority_drops_the_least_confident(contested, weights):
  plan = token_choice(
    jnp.asarray(contested),
    jnp.asarray(weights),
    num_selected_experts=1,
    capacity=4,
    batch_priority=True,
  )
  kept = plan.experts_per_token() > 0
  confidence = contested.max(axis=2)
  for group in range(G):
    assert confidence[group][kept[group]].min() > (
      confidence[group][~kept[group]].max()
    )


@pytest.mark.parametrize(
  "choice",
  [
    functools.partial(token_choice, num_selected_experts=2, capacity=3),
    functools.partial(expert_choice, capacity=3),
  ],
)
def test_gradient_reaches_weights_and_not_scores(distinct, weights, choice):
  def total(scores, weights):
    return jnp.sum(choice(scores, weights).weights)

  scores, weights = jnp.asarray(distinct), jnp.asarray(weights)
  to_scores, to_weights = jax.grad(total, argnums=(0, 1))(scores, weights)
  assert not np.any(to_scores)
  dispatch = choice(scores, weights).dispatch_tensor()
  np.testing.assert_array_equal(to_weights, dispatch.sum(axis=3))


@pytest.mark.parametrize("K", [0, E + 1])
def test_impossible_number_of_experts(distinct, weights, K):
  with pytest.raises(ValueError, match=rf"num_selected_experts={K}.*=4"):
    token_choice(
      jnp.asarray(distinct),
      jnp.asarray(weights),
      num_selected_experts=K,
      capacity=3,
    )


def test_experts_do_not_choose_zero_scores_if_told_so():
  scores = jnp.array([[[0.5, 0.0], [0.0, 0.0], [0.2, 0.1]]])
  weights = jnp.full_like(scores, 0.5)
  filled = expert_choice(scores, weights, capacity=2)
  left = expert_choice(scores, weights, capacity=2, fill_zero_scores=False)
  assert filled.tokens.tolist() == [[[0, 2], [2, 0]]]
  assert left.tokens.tolist() == [[[0, 2], [2, 3]]]
  assert left.weights.tolist() == [[[0.5, 0.5], [0.5, 0.0]]]
