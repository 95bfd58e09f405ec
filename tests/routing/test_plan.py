"""The index form: its memory, its precision, and the shapes it accepts."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.nn.zoo import ROUTERS
from vmoe_study.routing.affinity import (
  RowSparseTransport,
  Sinkhorn,
  SparseTransport,
)
from vmoe_study.routing.choice import expert_choice, token_choice
from vmoe_study.routing.plan import IndexPlan

from ..jaxprs import equations
from .layer import Setting, draw, layer, loss, route, router_of

# Many tokens of small width: the routing tensors are the largest arrays.
SETTING = Setting(groups=2, tokens=64, experts=4)
SPARSE = [n for n, spec in ROUTERS.items() if "plan_form" in spec.options()]


def _largest(name, **options):
  """Elements of the largest array that a training step makes."""
  data = draw(name, SETTING)
  router = router_of(name, SETTING, **options)

  def outcome(params, x, noise):
    plan, aux = route(router, params, data.state, x, noise)
    y = layer(params, x, plan)
    return loss(y, aux), (
      y,
      plan.tokens_per_expert(),
      plan.experts_per_token(),
      aux,
    )

  run = jax.value_and_grad(outcome, argnums=(0, 1), has_aux=True)
  jaxpr = jax.make_jaxpr(run)(data.params, data.x, data.noise)
  return max(
    math.prod(getattr(made.aval, "shape", ()))
    for equation in equations(jaxpr.jaxpr)
    for made in equation.outvars
  )


def _routing_tensor(name):
  """Elements of a routing tensor."""
  capacity = router_of(name, SETTING).capacity(SETTING.tokens)
  return SETTING.groups * SETTING.tokens * SETTING.experts * capacity


TRANSPORTS = (Sinkhorn, SparseTransport, RowSparseTransport)
CASES = [(name, "softmax") for name in SPARSE]
CASES += [
  (name, "transport")
  for name in SPARSE
  if ROUTERS[name].parts["affinity"] in TRANSPORTS
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "weights"), CASES)
def test_no_routing_tensor_in_the_index_form(name, weights):
  largest = _largest(name, plan_form="index", weights=weights)
  assert largest < _routing_tensor(name)


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["softmax_token_choice", "softmax_expert_choice"]
)
def test_a_routing_tensor_in_the_dense_form(name):
  assert _largest(name, plan_form="dense") >= _routing_tensor(name)


@pytest.fixture(params=["slots known", "slots unknown", "dense"])
def plan(request):
  """A plan of 2 groups of 4 tokens and 3 experts with 2 slots each."""
  choose = {
    "slots known": functools.partial(token_choice, num_selected_experts=2),
    "slots unknown": expert_choice,
  }.get(request.param, expert_choice)
  scores = np.random.default_rng(0).uniform(size=(2, 4, 3))
  plan = choose(scores, scores, capacity=2)
  return plan.to_dense() if request.param == "dense" else plan


@pytest.mark.parametrize("shape", [(1, 4, 5), (2, 3, 5), (2, 8, 5), (4, 4, 5)])
def test_tokens_of_another_shape(plan, shape):
  with pytest.raises(ValueError) as error:
    plan.dispatch(np.ones(shape, np.float32))
  assert str(shape) in str(error.value)
  assert "(2, 4, D)" in str(error.value)


@pytest.mark.parametrize(
  "shape", [(2, 2, 2, 5), (3, 1, 2, 5), (3, 2, 1, 5), (2, 3, 2, 5)]
)
def test_outputs_of_another_shape(plan, shape):
  with pytest.raises(ValueError) as error:
    plan.combine(np.ones(shape, np.float32))
  assert str(shape) in str(error.value)
  assert "(3, 2, 2, D)" in str(error.value)


def test_known_slots_are_counted_without_moving_rows():
  scores = np.random.default_rng(0).uniform(size=(2, 4, 3))
  plan = token_choice(scores, scores, num_selected_experts=2, capacity=2)
  program = str(jax.make_jaxpr(plan.experts_per_token)())
  assert "gather" not in program and "scatter" not in program


@pytest.mark.parametrize("inverse", [False, True])
def test_half_precision_is_summed_in_single(inverse):
  """A token in 300 slots: in bfloat16, 256 + 1 is 256."""
  num_slots = 300
  slots = jnp.arange(num_slots, dtype=jnp.int32)[None, None]
  plan = IndexPlan(
    jnp.zeros((1, num_slots, 1), jnp.int32),
    jnp.ones((1, num_slots, 1)),
    num_tokens=1,
    slots=slots if inverse else None,
  )
  outputs = jnp.ones((num_slots, 1, 1, 1), jnp.bfloat16)
  combined = plan.combine(outputs)
  assert combined.dtype == jnp.bfloat16
  assert combined.item() == num_slots

  _, vjp = jax.vjp(plan.dispatch, jnp.ones((1, 1, 1), jnp.bfloat16))
  (gradient,) = vjp(outputs)
  assert gradient.item() == num_slots
  np.testing.assert_array_equal(plan.experts_per_token(), num_slots)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["index", "index with slots", "dense"])
def test_parts_have_their_own_groups_only(form):
  scores = jax.random.normal(jax.random.key(0), (6, 5, 4))
  if form == "index with slots":
    plan = token_choice(scores, scores, capacity=2, num_selected_experts=2)
  else:
    plan = expert_choice(scores, scores, capacity=2)
  plan = plan.to_dense() if form == "dense" else plan
  x = jax.random.normal(jax.random.key(1), (6, 5, 3))
  whole = plan.dispatch(x)
  y = plan.combine(whole)
  for index in range(3):
    part, groups = plan.part(index, 3), slice(2 * index, 2 * index + 2)
    assert (part.num_groups, part.num_experts) == (2, 4)
    inputs = part.dispatch(x[groups])
    np.testing.assert_array_equal(inputs, whole[:, groups])
    np.testing.assert_allclose(part.combine(inputs), y[groups], rtol=1e-6)
