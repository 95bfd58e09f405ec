"""The contract of all routers, in every plan form, as they are in training.

It covers every row of `ROUTERS`, including new ones, and takes what a router
promises from its row. A row without anything new is tried in one setting.
"""

import dataclasses

import jax
import numpy as np
import pytest

from vmoe_study.nn.logits import CosineLogits, LinearLogits
from vmoe_study.nn.router_table import expert_rows
from vmoe_study.nn.zoo import ROUTERS
from vmoe_study.routing.affinity import (
  RowSparseTransport,
  Sinkhorn,
  Softmax,
  SparseTransport,
)
from vmoe_study.routing.choice import ExpertChoice, TokenChoice

from . import formulas, oracles
from .layer import EXTREMES, Setting, outcomes, router_of, token_order

CROWDED = Setting(2, 12, 4, selected=2, priority=True)
SLOW = {
  "vanilla": dataclasses.replace(CROWDED, priority=False),
  "half the slots": Setting(3, 7, 3, factor=0.5),
  "a slot for every token": Setting(2, 4, 2, factor=3.0, selected=2),
  "one token": Setting(2, 1, 2, factor=2.0),
  "one expert": Setting(2, 5, 1),
  "half precision": dataclasses.replace(CROWDED, dtype="bfloat16"),
}
SETTINGS = [pytest.param(CROWDED, id="crowded")]
SETTINGS += [
  pytest.param(setting, id=name, marks=pytest.mark.slow)
  for name, setting in SLOW.items()
]
EXACT = [s for s in SETTINGS if "half precision" not in str(s.id)]
HALF_PRECISION = (
  "softmax_token_choice",
  "softmax_expert_choice",
  "soft",
  "cosine_token_choice",
  "random",
)
SPARSE = [n for n, spec in ROUTERS.items() if "plan_form" in spec.options()]
SOFT = [n for n, s in ROUTERS.items() if s.guarantees.slots == "a mean"]


def _with_new_parts():
  """Rows with a class, a part or guarantees that no row above has."""
  seen, found = set(), set()
  for name, spec in ROUTERS.items():
    contents = {spec.router, spec.guarantees, *spec.parts.values()}
    if not contents <= seen:
      found.add(name)
    seen |= contents
  return found


# Batch priority is of token choice. Routers compute in float32, whatever the
# dtype of tokens: it matters to the logits and to the form of the plan.
ROUTERS_IN = {
  "crowded": ROUTERS,
  "vanilla": ("softmax_token_choice",),
  "half precision": HALF_PRECISION,
}
ROUTERS_IN |= dict.fromkeys(SLOW.keys() - ROUTERS_IN.keys(), _with_new_parts())


def for_all(names=ROUTERS, settings=SETTINGS):
  """Runs a test for each of these routers in each of its settings."""
  cases = [
    pytest.param(name, *s.values, id=f"{name}-{s.id}", marks=s.marks)
    for s in settings
    for name in names
    if name in ROUTERS_IN[s.id]
  ]
  return pytest.mark.parametrize(("name", "setting"), cases)


def _part(name, field):
  return ROUTERS[name].parts.get(field)


def _ordinary(name, setting):
  """(data, outcome) of the cases that are not extreme."""
  for kind, _, data, _, outcome in outcomes(name, setting):
    if kind not in EXTREMES:
      yield data, outcome


def _pairs(name, setting, kind):
  """(seed, outcome of a plain case, outcome of its variant)."""
  found = {
    (kind, seed, form): outcome
    for kind, seed, _, form, outcome in outcomes(name, setting)
  }
  for (found_kind, seed, form), outcome in found.items():
    if found_kind == kind:
      yield seed, found["plain", seed, form], outcome


def _counts(name, setting):
  """The values of the letters in guarantees, and which conditions hold."""
  router = router_of(name, setting)
  options = ROUTERS[name].default_options()
  C, S, E = router.capacity(setting.tokens), setting.tokens, setting.experts
  K = setting.selected if "num_selected_experts" in options else 1
  M = options.get("max_experts_per_token", E)
  counts = {"0": 0, "1": 1, "K": K, "M": M, "E": E, "C": C, "S": S}
  counts["min(C, S)"] = min(C, S)
  holds = {
    "never": False,
    "if C >= S": C >= S,
    "if E C >= K S": E * C >= K * S,
    "always": True,
  }
  return counts, holds


@for_all()
def test_guarantees(name, setting):
  promised = ROUTERS[name].guarantees
  counts, holds = _counts(name, setting)
  slack = 1e-4 if promised.slots == "a mean" else 0
  for _, _, _, _, outcome in outcomes(name, setting):
    load = outcome["dispatch"].sum(axis=(1, 3))
    least, most = (counts[letter] for letter in promised.tokens_per_expert)
    assert least - slack <= load.min() and load.max() <= most + slack
    processing = outcome["dispatch"].sum(axis=3) > 0
    per_token = processing.sum(axis=2)
    least, most = (counts[letter] for letter in promised.experts_per_token)
    assert per_token.max() <= most
    if holds[promised.all_processed_if] and promised.slots == "one token":
      assert per_token.min() >= least


@for_all()
def test_slots_hold_a_token_or_a_mean(name, setting):
  a_mean = ROUTERS[name].guarantees.slots == "a mean"
  for _, outcome in _ordinary(name, setting):
    dispatch, combine = outcome["dispatch"], outcome["combine"]
    assert combine.min() >= 0
    if a_mean:
      assert dispatch.min() >= 0
      np.testing.assert_allclose(dispatch.sum(axis=1), 1, atol=1e-6)
      np.testing.assert_allclose(combine.sum(axis=(2, 3)), 1, atol=1e-6)
    else:
      assert set(np.unique(dispatch)) <= {0.0, 1.0}
      assert dispatch.sum(axis=1).max() <= 1
      assert dispatch.sum(axis=3).max() <= 1
      assert not np.any(combine[dispatch == 0])


def _plain(name):
  """(data, outcome) of the plain cases, crowded."""
  for kind, _, data, form, outcome in outcomes(name, CROWDED):
    if kind == "plain" and form != "dense":
      yield data, outcome


def _taken(given, dispatch, scores):
  """Which token goes to which expert, (G, S, E), by scores of all groups."""
  return np.stack(
    [
      oracles.routing_tensors(dispatch(given, group), group, given.C)[0].sum(2)
      for group in scores
    ]
  )


@pytest.mark.parametrize("name", [n for n in ROUTERS if n not in SOFT])
def test_sparse_tensors_are_those_of_the_page(name):
  """Dispatch and Combine, from the words of ROUTERS.md; 1e-5."""
  spec, router = ROUTERS[name], router_of(name, CROWDED)
  for data, outcome in _plain(name):
    clean, options = outcome["logits"], spec.default_options()
    given = formulas.Given(
      logits=clean + data.noise,
      weighed=clean + options["noisy_weights"] * data.noise,
      state=data.state,
      C=router.capacity(CROWDED.tokens),
      K=router.choice.num_selected_experts,
      M=options.get("max_experts_per_token", CROWDED.experts),
      priority=getattr(router.choice, "batch_priority", False),
    )
    scores = formulas.SCORES[spec.about.scores](given)
    taken = outcome["dispatch"].sum(axis=3)
    if dispatch := formulas.DISPATCH.get(spec.about.dispatch):
      np.testing.assert_array_equal(taken, _taken(given, dispatch, scores))
    else:
      assert name == "base"
    weights = formulas.COMBINE[spec.about.combine](given, scores)
    found = outcome["combine"].sum(axis=3)
    np.testing.assert_allclose(found, taken * weights, atol=1e-5)


@pytest.mark.parametrize("name", SOFT)
def test_soft_tensors_are_those_of_the_page(name):
  about = ROUTERS[name].about
  for data, outcome in _plain(name):
    noisy = np.float64(outcome["logits"] + data.noise)
    for key, text in (
      ("dispatch", about.dispatch),
      ("combine", about.combine),
    ):
      expected = formulas.SOFT[text](noisy)
      np.testing.assert_allclose(outcome[key], expected, atol=1e-5)


@for_all([n for n, s in ROUTERS.items() if not s.router.is_dropless])
def test_expert_rows_per_token_are_those_of_the_page(name, setting):
  K = _counts(name, setting)[0]["K"]
  factors = {"factor": setting.factor, "K x factor": K * setting.factor}
  per_token = factors[expert_rows(ROUTERS[name])]
  for _, outcome in _ordinary(name, setting):
    *_, E, C = outcome["dispatch"].shape
    assert round(setting.tokens * per_token / E) == C


def _scores(name, setting):
  """(logits, C, K, affinity of the router) for random logits."""
  router = router_of(name, setting)
  shape = setting.groups, setting.tokens, setting.experts
  K = router.choice.num_selected_experts
  for std in (0.1, 1.0):
    logits = std * np.random.default_rng(0).normal(size=shape)
    yield (
      np.float32(logits),
      router.capacity(setting.tokens),
      K,
      router.affinity,
    )


@pytest.mark.parametrize(
  "affinity", [Softmax, Sinkhorn, SparseTransport, RowSparseTransport]
)
def test_transport_plans_have_their_marginals(affinity):
  name = next(n for n in SPARSE if _part(n, "affinity") is affinity)
  for logits, C, K, affinity_of in _scores(name, CROWDED):
    scores = affinity_of(logits, C, K)
    rows, columns = scores.sum(axis=2), scores.sum(axis=1)
    assert scores.min() >= 0
    if affinity is SparseTransport:
      np.testing.assert_allclose(columns, 3, rtol=1e-5)
      assert (scores > 0).sum(axis=1).max() <= C
    else:
      np.testing.assert_allclose(rows, 1, rtol=1e-5)
    if affinity is RowSparseTransport:
      assert (scores > 0).sum(axis=2).max() <= K
    if affinity is Sinkhorn:
      np.testing.assert_allclose(columns, 3, rtol=1e-3)


@for_all()
def test_load_agrees_with_dispatch(name, setting):
  for _, outcome in _ordinary(name, setting):
    per_expert = outcome["dispatch"].sum(axis=(1, 3))
    per_token = outcome["dispatch"].sum(axis=(2, 3))
    aux = outcome["aux"]
    for load in (outcome["tokens_per_expert"], aux["tokens_per_expert"]):
      np.testing.assert_allclose(load, per_expert, atol=1e-5)
    experts = outcome["experts_per_token"]
    np.testing.assert_allclose(experts, per_token, atol=1e-5)
    unprocessed = (per_token == 0).mean(axis=1)
    np.testing.assert_allclose(aux["unprocessed"], unprocessed, atol=1e-6)


@for_all(settings=EXACT)
def test_the_layer_equals_its_two_tensors(name, setting):
  for data, outcome in _ordinary(name, setting):
    inputs = np.einsum("gsec,gsd->egcd", outcome["dispatch"], data.x)
    experts = data.params["experts"]
    outputs = np.tanh(np.einsum("egcd,edf->egcf", inputs, experts))
    y = np.einsum("gsec,egcd->gsd", outcome["combine"], outputs)
    np.testing.assert_allclose(outcome["y"], y, atol=1e-5)


@for_all(SPARSE, EXACT)
def test_both_plan_forms_agree(name, setting):
  found = {}
  for kind, _, _, form, outcome in outcomes(name, setting):
    if kind not in EXTREMES:
      found.setdefault(form, []).append(outcome)
  index, dense = map(jax.tree.leaves, (found["index"], found["dense"]))
  # Cosine logits are divided by a temperature, and rounding with them.
  is_cosine = _part(name, "logits_rule") is CosineLogits
  atol = 1e-5 if is_cosine else 1e-6
  for one, other in zip(index, dense, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)


@for_all(settings=EXACT)
def test_groups_are_independent(name, setting):
  for _, plain, other in _pairs(name, setting, "other groups"):
    for key in ("dispatch", "combine", "y"):
      np.testing.assert_allclose(plain[key][0], other[key][0], atol=1e-5)
    # ReLU routing may leave out a whole group, of one token.
    left_out = name == "relu" and not np.any(plain["y"][1] + other["y"][1])
    assert left_out or np.any(plain["y"][1] != other["y"][1])


def _ignores_order(name):
  """Whether neither position nor the order of ties decides."""
  by_order = {SparseTransport, RowSparseTransport}
  return ROUTERS[name].router.__name__ == "SoftRouter" or (
    _part(name, "affinity") not in by_order
    and _part(name, "choice") in (TokenChoice, ExpertChoice)
    and _part(name, "logits_rule") in (LinearLogits, CosineLogits)
  )


@pytest.mark.parametrize("name", [*filter(_ignores_order, ROUTERS)])
def test_permuting_tokens_permutes_the_result(name):
  for seed, plain, permuted in _pairs(name, CROWDED, "permuted"):
    y = plain["y"][:, token_order(CROWDED, seed)]
    np.testing.assert_allclose(permuted["y"], y, atol=1e-5)


@for_all()
def test_all_is_finite(name, setting):
  """Also for logits of 10,000, equal tokens, zeros, an empty expert."""
  for kind, _, _, _, outcome in outcomes(name, setting):
    for leaf in jax.tree.leaves(outcome):
      assert np.all(np.isfinite(np.asarray(leaf, np.float32))), kind


@pytest.mark.parametrize("name", ROUTERS)
def test_gradients_reach_everything(name):
  for _, outcome in _ordinary(name, CROWDED):
    assert all(np.any(g != 0) for g in jax.tree.leaves(outcome["grads"]))


@for_all()
def test_dtypes(name, setting):
  *_, outcome = outcomes(name, setting)[0]
  assert outcome["y"].dtype == setting.dtype
  exact = outcome["dispatch"], outcome["combine"], outcome["aux"]
  for leaf in jax.tree.leaves((exact, outcome["grads"][0])):
    assert leaf.dtype == np.float32


def test_an_expert_that_no_token_wants_has_none():
  for kind, _, _, _, outcome in outcomes("softmax_token_choice", CROWDED):
    if kind == "empty expert":
      loads = outcome["tokens_per_expert"]
      assert np.all(loads[:, 1] == 0)
