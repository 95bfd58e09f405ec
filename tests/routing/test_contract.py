"""The contract of all routers, in every plan form.

It covers every row of `ROUTERS`, including new ones.
"""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmoe_study.nn.zoo import ROUTERS
from vmoe_study.routing.affinity import Sinkhorn, SparseTransport
from vmoe_study.routing.choice import ExpertChoice, TokenChoice

from .layer import Setting, draw, router_of, run

CROWDED = Setting(groups=2, tokens=12, experts=4)
TWO_CHOICES = Setting(3, 7, 3, factor=0.5, selected=2, priority=True)
ROOMY = Setting(2, 4, 2, factor=3.0)  # More slots than tokens.
ONE_TOKEN = Setting(2, 1, 2, factor=2.0)
ONE_EXPERT = Setting(2, 5, 1)
SETTINGS = [CROWDED, TWO_CHOICES, ROOMY, ONE_TOKEN, ONE_EXPERT]
HALF_PRECISION = dataclasses.replace(CROWDED, dtype="bfloat16")


def _with_choice(part):
  return [name for name, r in ROUTERS.items() if r.parts.get("choice") is part]


SPARSE = [name for name, spec in ROUTERS.items() if spec.parts]
TOKENS_CHOOSE = _with_choice(TokenChoice)
EXPERTS_CHOOSE = _with_choice(ExpertChoice)


def contract(*names):
  """Runs a test for each of these routers on random data and settings."""

  def decorate(test):
    cases = given(
      setting=st.sampled_from(SETTINGS),
      seed=st.integers(0, 2**16),
      logit_std=st.sampled_from([0.1, 1.0, 4.0]),
    )
    few = settings(
      max_examples=12, deadline=None, derandomize=True, database=None
    )
    return pytest.mark.parametrize("name", names)(few(cases(test)))

  return decorate


def _outcomes(name, setting, seed, logit_std):
  data = draw(name, setting, seed, logit_std)
  return run(name, setting, data).values()


@contract(*SPARSE)
def test_a_slot_holds_one_token_at_most(name, setting, seed, logit_std):
  for outcome in _outcomes(name, setting, seed, logit_std):
    dispatch = np.asarray(outcome["dispatch"])
    assert set(np.unique(dispatch)) <= {0.0, 1.0}
    assert dispatch.sum(axis=1).max() <= 1
    assert dispatch.sum(axis=3).max() <= 1
    assert not np.any(outcome["combine"][dispatch == 0])


@contract(*TOKENS_CHOOSE)
def test_a_token_takes_k_experts_at_most(name, setting, seed, logit_std):
  for outcome in _outcomes(name, setting, seed, logit_std):
    per_token = outcome["dispatch"].sum(axis=(2, 3))
    assert per_token.max() <= setting.selected
    fills = ROUTERS[name].default_options()["fill_zero_scores"]
    if fills and outcome["dispatch"].shape[3] >= setting.tokens:
      np.testing.assert_array_equal(per_token, setting.selected)


@contract(*EXPERTS_CHOOSE)
def test_experts_fill_their_slots(name, setting, seed, logit_std):
  for outcome in _outcomes(name, setting, seed, logit_std):
    filled = outcome["dispatch"].sum(axis=(1, 3))
    expected = min(setting.tokens, outcome["dispatch"].shape[3])
    np.testing.assert_array_equal(filled, expected)


@contract("soft")
def test_soft_plans_are_convex(name, setting, seed, logit_std):
  for outcome in _outcomes(name, setting, seed, logit_std):
    dispatch, combine = outcome["dispatch"], outcome["combine"]
    assert dispatch.min() >= 0
    assert combine.min() >= 0
    np.testing.assert_allclose(dispatch.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(combine.sum(axis=(2, 3)), 1, atol=1e-6)


def _scores(name, setting, seed, logit_std):
  """Random logits, C and the affinity of the router."""
  router = router_of(name, setting)
  shape = setting.groups, setting.tokens, setting.experts
  logits = logit_std * jax.random.normal(jax.random.key(seed), shape)
  return logits, router.capacity(setting.tokens), router.affinity


@contract(*SPARSE)
def test_transport_plans_have_their_marginals(name, setting, seed, logit_std):
  logits, capacity, affinity = _scores(name, setting, seed, logit_std)
  scores = affinity(logits, capacity)
  column = setting.tokens / setting.experts
  assert scores.min() >= 0
  if isinstance(affinity, SparseTransport):
    np.testing.assert_allclose(scores.sum(axis=1), column, rtol=1e-5)
    assert (scores > 0).sum(axis=1).max() <= capacity
  else:
    np.testing.assert_allclose(scores.sum(axis=2), 1, rtol=1e-5)
  if isinstance(affinity, Sinkhorn) and logit_std <= 1:
    np.testing.assert_allclose(scores.sum(axis=1), column, rtol=1e-3)


@contract(*SPARSE)
def test_permuting_tokens_permutes_scores(name, setting, seed, logit_std):
  logits, capacity, affinity = _scores(name, setting, seed, logit_std)
  order = np.random.default_rng(seed).permutation(setting.tokens)
  scores = affinity(logits, capacity)[:, order]
  permuted = affinity(logits[:, order], capacity)
  np.testing.assert_allclose(permuted, scores, atol=1e-5)


@contract(*ROUTERS)
def test_load_agrees_with_dispatch(name, setting, seed, logit_std):
  for outcome in _outcomes(name, setting, seed, logit_std):
    per_expert = outcome["dispatch"].sum(axis=(1, 3))
    per_token = outcome["dispatch"].sum(axis=(2, 3))
    aux = outcome["aux"]
    for load in (outcome["tokens_per_expert"], aux.tokens_per_expert):
      np.testing.assert_allclose(load, per_expert, atol=1e-5)
    experts = outcome["experts_per_token"]
    np.testing.assert_allclose(experts, per_token, atol=1e-5)
    unprocessed = (per_token == 0).mean(axis=1)
    np.testing.assert_allclose(aux.unprocessed, unprocessed, atol=1e-6)


@contract(*ROUTERS)
def test_the_layer_equals_its_two_tensors(name, setting, seed, logit_std):
  data = draw(name, setting, seed, logit_std)
  for outcome in run(name, setting, data).values():
    dispatch, combine = outcome["dispatch"], outcome["combine"]
    inputs = np.einsum("gsec,gsd->egcd", dispatch, data.x)
    experts = data.params["experts"]
    outputs = np.tanh(np.einsum("egcd,edf->egcf", inputs, experts))
    y = np.einsum("gsec,egcd->gsd", combine, outputs)
    np.testing.assert_allclose(outcome["y"], y, atol=1e-5)


@contract(*SPARSE)
def test_both_plan_forms_agree(name, setting, seed, logit_std):
  index, dense = _outcomes(name, setting, seed, logit_std)
  for one, other in zip(
    jax.tree.leaves(index), jax.tree.leaves(dense), strict=True
  ):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@contract(*ROUTERS)
def test_groups_are_independent(name, setting, seed, logit_std):
  data = draw(name, setting, seed, logit_std)
  other = draw(name, setting, seed + 1, logit_std)
  other.x[0], other.noise[0] = data.x[0], data.noise[0]
  changed = dataclasses.replace(other, params=data.params)
  before, after = run(name, setting, data), run(name, setting, changed)
  for form in before:
    for key in ("dispatch", "combine", "y"):
      one, same = before[form][key][0], after[form][key][0]
      np.testing.assert_allclose(one, same, atol=1e-5)
    assert np.any(before[form]["y"][1] != after[form]["y"][1])


# Scores of sparse transport tie at zero, and ties go to the lower index.
@contract(*(name for name in ROUTERS if "sparsity" not in name))
def test_permuting_tokens_permutes_the_result(name, setting, seed, logit_std):
  if name in TOKENS_CHOOSE:
    setting = TWO_CHOICES  # Without batch priority, position decides.
  data = draw(name, setting, seed, logit_std)
  order = np.random.default_rng(seed).permutation(setting.tokens)
  permuted = dataclasses.replace(
    data, x=data.x[:, order], noise=data.noise[:, order]
  )
  before, after = run(name, setting, data), run(name, setting, permuted)
  for form in before:
    y = before[form]["y"][:, order]
    np.testing.assert_allclose(after[form]["y"], y, atol=1e-5)


def _assert_finite(outcomes):
  for outcome in outcomes.values():
    for leaf in jax.tree.leaves(outcome):
      assert np.all(np.isfinite(np.asarray(leaf, np.float32)))


@contract(*ROUTERS)
def test_gradients_are_finite_and_reach_everything(
  name, setting, seed, logit_std
):
  outcomes = run(name, setting, draw(name, setting, seed, logit_std))
  _assert_finite(outcomes)
  if setting == CROWDED:
    for outcome in outcomes.values():
      assert all(np.any(g != 0) for g in jax.tree.leaves(outcome["grads"]))


@pytest.mark.parametrize(
  "setting", [CROWDED, pytest.param(HALF_PRECISION, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ROUTERS)
class TestNumerics:
  """Extreme inputs, in both precisions."""

  def test_huge_logits(self, name, setting):
    for logit_std in (1e2, 1e4):
      _assert_finite(run(name, setting, draw(name, setting, 0, logit_std)))

  def test_equal_tokens(self, name, setting):
    data = draw(name, setting)
    data.x[:] = data.x[:1, :1]
    data.noise[:] = 0
    _assert_finite(run(name, setting, data))

  def test_zero_tokens(self, name, setting):
    data = draw(name, setting)
    data.x[:] = 0
    data.noise[:] = 0
    _assert_finite(run(name, setting, data))

  def test_an_expert_without_tokens(self, name, setting):
    data = draw(name, setting)
    data.x[..., 0] = 1
    for kernel in jax.tree.leaves(data.params["router"]):
      if kernel.ndim == 2:
        kernel[0, 1] = -100
    outcomes = run(name, setting, data)
    _assert_finite(outcomes)
    if name == "softmax_token_choice":
      for outcome in outcomes.values():
        assert np.all(outcome["tokens_per_expert"][:, 1] == 0)

  def test_dtypes(self, name, setting):
    for outcome in run(name, setting, draw(name, setting)).values():
      assert outcome["y"].dtype == setting.dtype
      grads = outcome["grads"][0]
      exact = outcome["dispatch"], outcome["combine"], outcome["aux"], grads
      for leaf in jax.tree.leaves(exact):
        assert leaf.dtype == np.float32
