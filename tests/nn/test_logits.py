"""Rules for router logits: learned cosines, and fixed controls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.nn.zoo import make_router

pytestmark = pytest.mark.slow

G, S, D, E = 2, 12, 8, 4
X = np.float32(np.random.default_rng(0).normal(size=(G, S, D)))


def _logits(router, params=None, seed=None):
  rngs = {} if seed is None else {"router": jax.random.key(seed)}
  return router.apply(
    {"params": params or {}}, X, seed is None, rngs=rngs, method="logits"
  ).clean


@pytest.mark.parametrize("temperature, used", [(0.07, 0.07), (1e-4, 0.01)])
def test_cosines(temperature, used):
  rng = np.random.default_rng(1)
  kernel, experts = rng.normal(size=(D, 3)), rng.normal(size=(E, 3))
  cosine = {
    "projection": {"kernel": jnp.float32(kernel)},
    "experts": jnp.float32(experts),
    "temperature": jnp.float32(temperature),
  }
  router = make_router("cosine_token_choice", num_experts=E, projection_dim=3)
  projected = X @ kernel
  expected = np.einsum("gsp,ep->gse", projected, experts)
  expected /= np.linalg.norm(projected, axis=2, keepdims=True)
  expected /= np.linalg.norm(experts, axis=1)
  found = _logits(router, {"cosine": cosine})
  np.testing.assert_allclose(found, expected / used, rtol=1e-4, atol=1e-4)


def test_cosines_start_at_half_the_experts_and_the_given_temperature():
  router = make_router(
    "cosine_token_choice", num_experts=E, initial_temperature=0.5
  )
  params = router.init(jax.random.key(0), X)["params"]["cosine"]
  assert params["projection"]["kernel"].shape == (D, E // 2)
  assert params["temperature"] == 0.5


def test_random_routing_is_drawn_at_every_step_but_fixed_in_evaluation():
  router = make_router("random", num_experts=E)
  first, again, other = (_logits(router, seed=seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert np.all(first != other)
  np.testing.assert_array_equal(_logits(router), _logits(router))
  np.testing.assert_array_equal(_logits(router)[0], _logits(router)[1])


def _plan(name, **options):
  router = make_router(name, num_experts=E, **options)
  return router.apply({}, X)[0]


def test_identity_routing_is_the_identity():
  """Token s is in slot s // E of expert s mod E, with weight 1."""
  plan = _plan("identity")
  dispatch = np.asarray(plan.dispatch_tensor())  # G S E C
  in_order = dispatch.swapaxes(2, 3).reshape(G, S, S)
  np.testing.assert_array_equal(in_order, np.stack([np.eye(S)] * G))
  np.testing.assert_array_equal(plan.combine_tensor(), dispatch)


def test_a_hash_is_balanced_and_always_the_same():
  plan, again = _plan("hash"), _plan("hash")
  np.testing.assert_array_equal(plan.tokens, again.tokens)
  np.testing.assert_array_equal(plan.tokens_per_expert(), S // E)
  np.testing.assert_array_equal(plan.experts_per_token(), 1)
  assert np.any(plan.tokens != _plan("identity").tokens)


@pytest.mark.parametrize("name", ["random", "hash", "identity"])
def test_controls_weigh_experts_equally(name):
  plan = _plan(name, num_selected_experts=2, capacity_factor=2.0)
  combine = np.asarray(plan.combine_tensor())
  np.testing.assert_array_equal(combine, plan.dispatch_tensor() / 2)


@pytest.mark.parametrize(
  "name, dispatch, combine",
  [
    ("soft", "soft", "soft"),
    ("soft_uniform", "soft", "uniform"),
    ("uniform_soft", "uniform", "soft"),
    ("uniform", "uniform", "uniform"),
  ],
)
def test_ablations_of_soft_moe(name, dispatch, combine):
  router = make_router(name, num_experts=E)
  variables = router.init(jax.random.key(0), X)
  plan, _ = router.apply(variables, X)
  logits = router.apply(variables, X, True, method="logits").clean
  C = S // E
  expected = {
    "dispatch": {"soft": jax.nn.softmax(logits, axis=1), "uniform": 1 / S},
    "combine": {
      "soft": jax.nn.softmax(logits, axis=(2, 3)),
      "uniform": 1 / (E * C),
    },
  }
  np.testing.assert_allclose(
    plan.dispatch_tensor(),
    expected["dispatch"][dispatch] * np.ones_like(logits),
    rtol=1e-5,
  )
  np.testing.assert_allclose(
    plan.combine_tensor(),
    expected["combine"][combine] * np.ones_like(logits),
    rtol=1e-5,
  )
