"""Arrays of any kind are cast to float32; errors name what does not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.nn.parameter_names import ROUTER_STATE
from vmoe_study.nn.router import RouterLogits, SoftRouter
from vmoe_study.nn.zoo import ROUTERS, make_router
from vmoe_study.routing import balance, sinkhorn, soft, sparse_transport
from vmoe_study.routing.affinity import Sinkhorn, Softmax, SparseTransport
from vmoe_study.routing.choice import expert_choice, token_choice

from ..routers import FAST

G, S, E, C, K = 2, 6, 3, 2, 2
DTYPES = ("float32", "float64", "bfloat16")
TOKENS_CHOOSE = functools.partial(
  token_choice, num_selected_experts=K, capacity=C
)
EXPERTS_CHOOSE = functools.partial(expert_choice, capacity=C)
SHAPES = {
  "scores": (G, S, E),
  "weights": (G, S, E),
  "alpha": (G, S),
  "sorted": (G, S),
  "slots": (G, S, E, C),
  "loss": (G,),
}
USES = {
  "token_choice": lambda a: TOKENS_CHOOSE(a["scores"], a["weights"]),
  "expert_choice": lambda a: EXPERTS_CHOOSE(a["scores"], a["weights"]),
  "soft_choice": lambda a: soft.soft_choice(a["slots"]),
  "softmax": lambda a: Softmax()(a["scores"], C),
  "sinkhorn": lambda a: Sinkhorn(2)(a["scores"], C),
  "sparse transport": lambda a: SparseTransport(2)(a["scores"], C),
  "scaling_form": lambda a: sinkhorn.scaling_form(a["scores"], 2),
  "log_form": lambda a: sinkhorn.log_form(a["scores"], 2),
  "transport_at": lambda a: sparse_transport.transport_at(
    a["alpha"], a["scores"], C
  ),
  "semi_dual": lambda a: sparse_transport.semi_dual(a["alpha"], a["scores"], C),
  "descend": lambda a: sparse_transport.descend(
    a["alpha"], a["scores"], C, a["loss"]
  ),
  "projection": lambda a: sparse_transport.project_onto_simplex(a["sorted"]),
  "importance": lambda a: balance.importance_loss(a["scores"]),
  "load": lambda a: balance.load_loss(a["scores"], a["weights"], 0.5, K),
  "gshard": lambda a: balance.gshard_loss(a["scores"]),
  "router z": lambda a: balance.router_z_loss(a["scores"]),
  "aux": lambda a: balance.routing_aux(
    soft.soft_choice(jnp.zeros((G, S, E, C))), {"a": a["loss"]}, {"a": 0.3}
  ),
}


@pytest.fixture(scope="module")
def values():
  """Numbers that every kind of array holds exactly."""
  random = np.random.default_rng(0)
  found = {
    name: random.uniform(size=shape).astype(jnp.bfloat16)
    for name, shape in SHAPES.items()
  }
  found["sorted"] = -np.sort(-found["sorted"], axis=-1)
  return found


def _equal(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_arrays_of_any_kind(use, values):
  single = {k: jnp.asarray(v, jnp.float32) for k, v in values.items()}
  expected = USES[use](single)
  for leaf in jax.tree.leaves(expected):
    assert leaf.dtype in (jnp.float32, jnp.int32)
  for dtype in DTYPES:
    given = {k: v.astype(dtype) for k, v in values.items()}
    _equal(USES[use](given), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAST, "relu"])
def test_router_logits_of_any_kind(name, values):
  clean, noise = values["scores"], values["weights"]
  if ROUTERS[name].router is SoftRouter:
    clean, noise = values["slots"], -values["slots"]
  router = make_router(name, num_experts=E)
  variables = router.init(
    jax.random.key(0), jnp.ones((1, S, 2)), True, method="logits"
  )
  state = {
    name: jnp.broadcast_to(leaf, (G, *leaf.shape))
    for name, leaf in variables.get(ROUTER_STATE, {}).items()
  }
  expected = router.route(RouterLogits(clean, noise, state).as_float32())
  for dtype in DTYPES:
    given = RouterLogits(clean.astype(dtype), noise.astype(dtype), state)
    _equal(router.route(given), expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  "plan_of",
  [TOKENS_CHOOSE, EXPERTS_CHOOSE, "dense"],
  ids=["tokens", "experts", "dense"],
)
def test_tokens_and_outputs_keep_their_dtype(plan_of, dtype, values):
  choose = TOKENS_CHOOSE if plan_of == "dense" else plan_of
  plan = choose(values["scores"], values["weights"])
  plan = plan.to_dense() if plan_of == "dense" else plan
  x = values["scores"].astype(dtype)
  inputs = plan.dispatch(x)
  assert inputs.dtype == dtype
  _equal(inputs, plan.dispatch(jnp.asarray(x)))
  outputs = plan.combine(np.asarray(inputs))
  assert outputs.dtype == dtype
  _equal(outputs, plan.combine(inputs))


@pytest.mark.parametrize("name", ROUTERS)
def test_float32_where_jax_has_float64(name):
  """Only shapes and dtypes are computed."""
  options = {"num_experts": E, "noise_std": 1.0}
  solvers = ({},)
  if "solver" in ROUTERS[name].options():
    solvers = [{"solver": solver} for solver in sparse_transport.SOLVERS]
  with jax.enable_x64(True):
    for solver in solvers:
      router = make_router(name, **options, **solver)

      def run(x, router=router):
        rngs = {"params": jax.random.key(0), "router": jax.random.key(1)}
        (plan, aux), params = router.init_with_output(rngs, x, False)
        tensors = plan.dispatch_tensor(), plan.combine_tensor()
        return jax.tree.leaves((aux, tensors, plan.experts_per_token(), params))

      x = jax.ShapeDtypeStruct((G, S, 4), jnp.bfloat16)
      assert all(leaf.dtype == "float32" for leaf in jax.eval_shape(run, x))


SCORES = np.ones((G, S, E), np.float32)


@pytest.mark.parametrize(
  "call, message",
  [
    (
      lambda: TOKENS_CHOOSE(SCORES, SCORES[:, 1:]),
      r"weights.*\(2, 5, 3\).*scores.*\(2, 6, 3\)",
    ),
    (
      lambda: EXPERTS_CHOOSE(SCORES, SCORES[:1]),
      r"weights.*\(1, 6, 3\).*scores.*\(2, 6, 3\)",
    ),
    (lambda: TOKENS_CHOOSE(SCORES[0], SCORES[0]), r"scores.*\(G, S, E\)"),
    (lambda: EXPERTS_CHOOSE(SCORES[0], SCORES[0]), r"scores.*\(G, S, E\)"),
    (
      lambda: token_choice(SCORES, SCORES, num_selected_experts=1, capacity=0),
      "capacity=0.*at least 1",
    ),
    (
      lambda: expert_choice(SCORES, SCORES, capacity=-1),
      "capacity=-1.*at least 1",
    ),
    (
      lambda: sinkhorn.sinkhorn(SCORES[0]),
      r"logits.*\(6, 3\).*\(G, S, E\)",
    ),
    (
      lambda: sparse_transport.sparse_transport(SCORES[0], 2),
      r"affinity.*\(6, 3\).*\(G, S, E\)",
    ),
    (
      lambda: sparse_transport.sparse_transport(SCORES, 0),
      "max_nonzeros=0.*at least 1",
    ),
    (lambda: balance.gshard_loss(SCORES[0]), r"gates.*\(6, 3\)"),
    (
      lambda: balance.load_loss(SCORES, SCORES, 0.0, 1),
      "noise_std=0.0.*above 0",
    ),
  ],
)
@pytest.mark.usefixtures("unchecked")
def test_errors_name_the_argument(call, message):
  with pytest.raises(ValueError, match=message):
    call()
