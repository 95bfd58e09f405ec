"""Balanced assignment, capped expert choice and threshold choice."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from vmoe_study.routing.assignment import (
  BalancedAssignment,
  auction,
  balanced_assignment,
)
from vmoe_study.routing.capped import capped_expert_choice
from vmoe_study.routing.choice import token_choice
from vmoe_study.routing.threshold import threshold_choice

from . import oracles


def _scores(seed, S, E, std=1.0):
  scores = std * np.random.default_rng(seed).normal(size=(2, S, E))
  return np.float32(scores)


def _total(scores, experts):
  """The sum of the scores of an assignment of all tokens."""
  return np.take_along_axis(scores, experts[:, None], axis=1).sum()


def _best_total(scores, C):
  """SciPy's, with C copies of every expert."""
  copies = np.repeat(np.float64(scores), C, axis=1)
  rows, columns = linear_sum_assignment(-copies)
  return copies[rows, columns].sum()


@pytest.mark.parametrize("S, E, C", [(12, 4, 3), (24, 8, 3), (49, 7, 7)])
@pytest.mark.parametrize("std", [0.3, 3.0])
def test_an_auction_that_ends_is_within_epsilon_of_the_best(S, E, C, std):
  scores = _scores(0, S, E, std)
  experts = np.asarray(auction(scores, C, num_iterations=2000, epsilon=0.02))
  assert experts.max() < E
  for group, found in zip(scores, experts, strict=True):
    np.testing.assert_array_equal(np.bincount(found, minlength=E), C)
    best = _best_total(group, C)
    assert best - 0.02 * group.std() * S <= _total(group, found) <= best + 1e-3


@pytest.mark.slow
def test_the_defaults_come_within_a_percent_of_the_best():
  """At the size of one image: 196 tokens, 32 experts; ECs above S."""
  scores = _scores(1, 196, 32)
  plan = balanced_assignment(scores, scores, capacity=7)
  experts = np.asarray(plan.slots)[..., 0] // 7
  for group, found in zip(scores, experts, strict=True):
    assert np.bincount(found, minlength=32).max() <= 7
    best = _best_total(group, 7)
    assert _total(group, found) >= 0.99 * best


@pytest.mark.slow
@pytest.mark.parametrize("num_iterations", [1, 3])
def test_tokens_left_over_get_the_free_slots(num_iterations):
  scores = _scores(2, 24, 8)
  options = {"num_iterations": num_iterations}
  assert np.any(auction(scores, 3, **options) == 8)
  plan = balanced_assignment(scores, scores, capacity=3, **options)
  np.testing.assert_array_equal(plan.tokens_per_expert(), 3)
  np.testing.assert_array_equal(plan.experts_per_token(), 1)


@pytest.mark.slow
def test_tokens_beyond_all_slots_are_dropped():
  scores = _scores(3, 12, 4)
  plan = balanced_assignment(scores, scores, capacity=2)
  np.testing.assert_array_equal(plan.tokens_per_expert(), 2)
  assert plan.experts_per_token().sum(axis=1).tolist() == [8, 8]


@pytest.mark.slow
def test_a_single_expert_takes_all():
  plan = balanced_assignment(_scores(4, 5, 1), _scores(4, 5, 1), capacity=5)
  np.testing.assert_array_equal(plan.experts_per_token(), 1)


def test_evaluation_is_greedy():
  scores = _scores(5, 12, 4)
  choice = BalancedAssignment()
  found = choice(scores, scores, capacity=4)
  expected = token_choice(scores, scores, num_selected_experts=1, capacity=4)
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  trained = choice(scores, scores, capacity=4, deterministic=False)
  assert np.any(trained.tokens != found.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("C, M", [(3, 1), (3, 2), (6, 2), (20, 3)])
def test_capped_expert_choice(C, M):
  scores = _scores(6, 12, 4)
  plan = capped_expert_choice(
    scores, scores, capacity=C, max_experts_per_token=M, num_rounds=50
  )
  for group, dispatch in zip(scores, plan.dispatch_tensor(), strict=True):
    slots = oracles.deferred_acceptance(group, C, M)
    expected, _ = oracles.routing_tensors(slots, group, C)
    np.testing.assert_array_equal(dispatch.sum(axis=2), expected.sum(axis=2))
  np.testing.assert_allclose(
    plan.combine_tensor(), plan.dispatch_tensor() * scores[..., None]
  )


def test_a_cap_of_all_experts_is_expert_choice():
  scores = _scores(7, 12, 4)
  plan = capped_expert_choice(
    scores, scores, capacity=5, max_experts_per_token=4
  )
  for group, tokens in zip(scores, plan.tokens, strict=True):
    assert tokens.tolist() == oracles.expert_choice(group, 5)


@pytest.mark.parametrize("threshold", [0.0, 0.7])
@pytest.mark.parametrize("C", [1, 3, 12])
def test_threshold_choice(C, threshold):
  scores = _scores(8, 12, 4)
  plan = threshold_choice(scores, scores, capacity=C, threshold=threshold)
  for group, tokens in zip(scores, plan.tokens, strict=True):
    for e, found in enumerate(tokens):
      above = [s for s in range(12) if group[s, e] > threshold][:C]
      assert found.tolist() == above + [12] * (C - len(above))
  np.testing.assert_allclose(
    plan.combine_tensor(), plan.dispatch_tensor() * scores[..., None]
  )
