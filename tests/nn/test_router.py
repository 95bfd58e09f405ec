"""`make_router`: names, types, noise and precision."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vmoe_study.nn.router import RouterLogits, SoftRouter, SparseRouter
from vmoe_study.nn.zoo import ROUTERS, make_router, sparse_router_spec
from vmoe_study.routing.choice import ExpertChoice, TokenChoice
from vmoe_study.routing.sparse_transport import SOLVERS

SHAPE = G, S, D = 2, 12, 8
E = 4
NOISY = [
  "softmax_token_choice",
  "sinkhorn_token_choice",
  "softmax_expert_choice",
  "sinkhorn_expert_choice",
]


@pytest.fixture(scope="module")
def x():
  return jax.random.normal(jax.random.key(0), SHAPE)


@pytest.fixture(scope="module")
def kernel():
  return jax.random.normal(jax.random.key(1), (D, E)) / D**0.5


def _logits(router, kernel, x, seed=None):
  rngs = {} if seed is None else {"router": jax.random.key(seed)}
  params = {"params": {"dense": {"kernel": kernel}}}
  return router.apply(params, x, seed is None, rngs=rngs, method="logits")


STUDY = [
  "softmax_token_choice",
  "sinkhorn_token_choice",
  "sparsity_constrained_token_choice",
  "softmax_expert_choice",
  "sinkhorn_expert_choice",
  "sparsity_constrained_expert_choice",
  "soft",
]


def test_the_routers_of_the_study_come_first():
  assert list(ROUTERS)[: len(STUDY)] == STUDY


SLOTS = {"mu": (D, E, S // E), "scale": ()}
COSINE = {
  "cosine/experts": (E, E // 2),
  "cosine/projection/kernel": (D, E // 2),
  "cosine/temperature": (),
}
PARAMETERS = {
  "soft": SLOTS,
  "soft_uniform": SLOTS,
  "uniform_soft": SLOTS,
  "uniform": {},
  "random": {},
  "hash": {},
  "identity": {},
  "cosine_token_choice": COSINE,
}


def test_parameters(x):
  for name in ROUTERS:
    shapes = jax.eval_shape(
      lambda x, name=name: make_router(name, num_experts=E).init(
        jax.random.key(0), x, True, method="logits"
      ),
      x,
    ).get("params", {})
    leaves = flatten_dict(shapes, sep="/").items()
    expected = PARAMETERS.get(name, {"dense/kernel": (D, E)})
    assert {path: leaf.shape for path, leaf in leaves} == expected


def test_unknown_router_lists_the_known():
  with pytest.raises(ValueError, match="'softmx_token_choice'") as error:
    make_router("softmx_token_choice", num_experts=E)
  message = str(error.value)
  assert "mean 'softmax_token_choice'" in message
  assert all(name in message for name in ROUTERS)


@pytest.mark.parametrize("name", ROUTERS)
def test_unknown_option_lists_the_known(name):
  with pytest.raises(ValueError, match=f"{name}.*'capacity_facto'") as error:
    make_router(name, num_experts=E, capacity_facto=1.0)
  options = ROUTERS[name].options()
  assert "num_experts" in options
  assert all(option in str(error.value) for option in options)


@pytest.mark.parametrize(
  "option, value, rule",
  [
    ("num_experts", "4", "must be int"),
    ("num_experts", 4.0, "must be int"),
    ("num_experts", True, "must be int"),
    ("num_experts", 0, "at least 1"),
    ("num_selected_experts", 0, "at least 1"),
    ("num_iterations", 0, "at least 1"),
    ("noise_std", -1.0, "at least 0"),
    ("noise_std", float("nan"), "finite"),
    ("num_selected_experts", E + 1, f"num_experts={E}"),
    ("capacity_factor", "1", "must be float"),
    ("capacity_factor", 0.0, "above 0"),
    ("capacity_factor", -1, "above 0"),
    ("capacity_multiple_of", 0, "at least 1"),
    ("importance_loss_weight", -0.1, "at least 0"),
    ("load_loss_weight", -0.1, "at least 0"),
    ("gshard_loss_weight", -0.1, "at least 0"),
    ("router_z_loss_weight", -0.1, "at least 0"),
    ("capacity_rounding", "floor", "'round' or 'ceil'"),
    ("batch_priority", 1, "must be bool"),
    ("weights", "plan", "'softmax' or .* or 'transport'"),
    ("plan_form", "sparse", "'index' or 'dense' or 'auto'"),
  ],
)
def test_bad_values(option, value, rule):
  with pytest.raises(ValueError, match=rf"{option}=.*{rule}"):
    make_router("sinkhorn_token_choice", **{"num_experts": E, option: value})


def test_number_of_experts_is_needed():
  with pytest.raises(ValueError, match="num_experts.*must be given"):
    make_router("soft")


def test_soft_needs_a_slot():
  with pytest.raises(ValueError, match="slots_per_expert=0.*at least 1"):
    make_router("soft", num_experts=E, slots_per_expert=0)


@pytest.mark.parametrize("name", ["expert", "token"])
def test_solvers_are_known_by_name(name):
  name = f"sparsity_constrained_{name}_choice"
  for solver in SOLVERS:
    make_router(name, num_experts=E, solver=solver)
  with pytest.raises(ValueError, match="solver='newton'.*'adam'"):
    make_router(name, num_experts=E, solver="newton")


def test_numbers_of_numpy():
  router = make_router(
    "softmax_token_choice",
    num_experts=np.int64(E),
    num_selected_experts=np.int32(2),
    capacity_factor=np.float32(1.5),
    batch_priority=np.bool_(True),
  )
  assert router.capacity(S) == round(2 * S * 1.5 / E)
  assert router.choice == TokenChoice(2, True)
  with pytest.raises(ValueError, match="num_experts=4.0.*must be int"):
    make_router("softmax_token_choice", num_experts=np.float32(E))


@pytest.mark.parametrize(
  "router, option, value, known",
  [
    (SparseRouter, "weights", "plan", "'softmax' or .* or 'transport'"),
    (SparseRouter, "plan_form", "sparse", "'index' or 'dense' or 'auto'"),
    (SparseRouter, "capacity_rounding", "floor", "'round' or 'ceil'"),
    (SoftRouter, "capacity_rounding", "floor", "'round' or 'ceil'"),
  ],
)
def test_unknown_strings_are_refused(router, option, value, known):
  where = f"{router.__name__}.{option}='{value}'"
  with pytest.raises(ValueError, match=rf"{where}.*must be {known}"):
    router(E, **{option: value})


@dataclasses.dataclass(frozen=True)
class _Temperature:
  noise_std: float = 1.0


@dataclasses.dataclass(frozen=True)
class _Priority:
  batch_priority: bool = False


@pytest.mark.parametrize(
  "affinity, choice, name",
  [
    (_Temperature, ExpertChoice, "noise_std"),
    (_Priority, TokenChoice, "batch_priority"),
  ],
)
def test_an_option_belongs_to_one_class(affinity, choice, name):
  with pytest.raises(ValueError, match=rf"\['{name}'\].*{choice.__name__}"):
    sparse_router_spec(affinity, choice)


def test_whole_numbers_pass_for_floats(x, kernel):
  router = make_router(
    "softmax_expert_choice", num_experts=E, capacity_factor=2
  )
  plan, _ = router.route(_logits(router, kernel, x))
  assert plan.dispatch_tensor().shape == (G, S, E, 2 * S // E)


def test_slots_per_expert(x):
  router = make_router("soft", num_experts=E, slots_per_expert=5)
  (plan, _), _ = router.init_with_output(jax.random.key(0), x)
  assert plan.dispatch_tensor().shape == (G, S, E, 5)


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_for_training(name, x, kernel):
  router = make_router(name, num_experts=E)
  assert _logits(router, kernel, x).noise is None
  first, again, other = (_logits(router, kernel, x, seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first.noise, again.noise)
  assert np.all(first.noise != other.noise)
  np.testing.assert_array_equal(first.noisy, first.clean + first.noise)
  np.testing.assert_allclose(first.clean, x @ kernel, rtol=1e-4, atol=1e-5)


def test_deviation_of_noise_is_divided_by_experts(kernel):
  x = jnp.zeros((G, 5000, D))
  for noise_std in (1.0, 3.0):
    router = make_router(
      "softmax_expert_choice", num_experts=E, noise_std=noise_std
    )
    noise = _logits(router, kernel, x, seed=0).noise
    assert np.std(noise) == pytest.approx(noise_std / E, rel=0.02)
    assert np.mean(noise) == pytest.approx(0, abs=0.02)


def test_deviation_of_soft_noise_is_not(x):
  router = make_router("soft", num_experts=E, noise_std=3.0)
  params = {"mu": jnp.zeros((D, E, 200)), "scale": jnp.ones(())}
  rngs = {"router": jax.random.key(0)}
  logits = router.clone(slots_per_expert=200).apply(
    {"params": params}, x, False, rngs=rngs, method="logits"
  )
  assert np.std(logits.noise) == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("name", ["sparsity_constrained_expert_choice", "soft"])
def test_others_have_no_noise(name, x):
  router = make_router(name, num_experts=E)
  logits, _ = router.init_with_output(
    jax.random.key(0), x, False, method="logits"
  )
  assert logits.noise is None


@pytest.mark.parametrize("name", NOISY)
def test_which_logits_weigh_outputs(name, x, kernel):
  """In the public code, only Sinkhorn token choice ignores the noise."""
  router = make_router(name, num_experts=E)
  logits = _logits(router, kernel, x, seed=0)
  plan, _ = router.route(logits)
  quirk = name == "sinkhorn_token_choice"
  seen = logits.clean if quirk else logits.noisy
  gates = jax.nn.softmax(seen)[..., None]
  expected = plan.dispatch_tensor() * gates
  np.testing.assert_allclose(plan.combine_tensor(), expected, rtol=1e-5)


@pytest.mark.parametrize(
  "name", [n for n in ROUTERS if n.startswith(("sinkhorn", "sparsity"))]
)
def test_transport_weighs_outputs(name, x, kernel):
  router = make_router(name, num_experts=E, weights="transport")
  logits = _logits(router, kernel, x, seed=0)
  plan, _ = router.route(logits)
  scores = router.affinity(logits.noisy, router.capacity(S))
  expected = plan.dispatch_tensor() * scores[..., None]
  np.testing.assert_allclose(plan.combine_tensor(), expected, rtol=1e-5)


def test_logits_are_float32_whatever_the_tokens(x, kernel):
  router = make_router("softmax_expert_choice", num_experts=E)
  half = x.astype(jnp.bfloat16)
  logits = _logits(router, kernel, half)
  assert logits.clean.dtype == jnp.float32
  exact = half.astype(jnp.float32) @ kernel
  np.testing.assert_allclose(logits.clean, exact, rtol=1e-4, atol=1e-5)


def test_load_loss_is_defined_by_noise(x, kernel):
  for name in NOISY:
    router = make_router(name, num_experts=E)
    for seed in (None, 0):
      _, aux = router.route(_logits(router, kernel, x, seed))
      defined = "token" in name and seed is not None
      assert ("load_loss" in aux.losses) == defined
      np.testing.assert_array_equal(aux.auxiliary_loss, 0)


@dataclasses.dataclass(frozen=True)
class _Chooses:
  """A choice of a class that the package does not know."""

  tokens_choose: ClassVar[bool]
  num_selected_experts: int = 2

  def __call__(self, scores, weights, *, capacity, deterministic):
    return TokenChoice(2)(scores, weights, capacity=capacity)


class _TokensChoose(_Chooses):
  tokens_choose = True


class _ExpertsChoose(_Chooses):
  tokens_choose = False


@pytest.mark.parametrize("choice", [_TokensChoose(), _ExpertsChoose()])
def test_load_loss_is_for_all_choices_by_tokens(choice, x, kernel):
  router = SparseRouter(E, 1.0, choice=choice)
  logits = _logits(router, kernel, x, seed=0)
  _, aux = router.route(logits)
  assert ("load_loss" in aux.losses) == choice.tokens_choose
  if choice.tokens_choose:
    known = make_router("softmax_token_choice", num_experts=E)
    known = known.clone(choice=TokenChoice(2))
    expected = known.route(logits)[1].losses["load_loss"]
    np.testing.assert_array_equal(aux.losses["load_loss"], expected)


def test_sparse_token_choice_follows_its_plan(x, kernel):
  """No token is served by an expert that its transport plan leaves out."""
  name = "column_sparse_token_choice"
  router = make_router(name, num_experts=E, num_selected_experts=2)
  logits = _logits(router, 0.1 * kernel, x)
  scores = router.affinity(logits.clean, router.capacity(S))
  served = {}
  for fill in (False, True):
    choice = dataclasses.replace(router.choice, fill_zero_scores=fill)
    plan, _ = router.clone(choice=choice).route(logits)
    served[fill] = plan.dispatch_tensor().sum(axis=3) > 0
  plan, _ = router.route(logits)
  np.testing.assert_array_equal(
    plan.dispatch_tensor().sum(axis=3) > 0, served[False]
  )
  assert np.all(scores[served[False]] > 0)
  assert np.any(scores[served[True]] == 0)


@pytest.mark.parametrize(
  "platform, tokens, dense",
  [
    ("cpu", S, False),
    ("gpu", S, False),
    ("tpu", S, True),
    ("tpu", 3136, False),
  ],
)
def test_the_form_of_a_plan_follows_machine_and_shape(
  platform, tokens, dense, monkeypatch
):
  """Needs no accelerator: only its name is patched in."""
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  router = make_router("softmax_expert_choice", num_experts=E, plan_form="auto")
  found = []

  def route(logits):
    plan, aux = router.route(RouterLogits(logits))
    found.append(plan.multiplies)
    return aux.unprocessed

  jax.eval_shape(route, jnp.zeros((G, tokens, E)))
  assert found == [dense]
