"""The kernels for TPUs, emulated, against the routing tensors of a plan."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.routing.choice import expert_choice, token_choice
from vmoe_study.routing.plan import IndexPlan
from vmoe_study.routing.slot_kernel import combine, dispatch, is_supported

pytestmark = pytest.mark.slow

G, S, E, C, D = 16, 13, 4, 3, 256


def _plan(choice):
  logits = jax.random.normal(jax.random.key(0), (G, S, E))
  scores = jax.nn.softmax(logits)
  if choice == "expert":
    return expert_choice(scores, scores, capacity=C)
  scores = scores.at[..., 0].set(0)  # Leaves slots of an expert empty.
  return token_choice(scores, scores, num_selected_experts=1, capacity=C)


def _tokens(dtype="float32"):
  return jax.random.normal(jax.random.key(1), (G, S, D), dtype)


def _by_kernels(plan, x, parts):
  rows = dispatch(x, plan.tokens, S, parts, True)
  rows = [jnp.tanh(part) for part in rows]
  return combine(rows, plan.tokens, plan.weights, S, True)


def _by_tensors(plan, x):
  plan = plan.to_dense()
  return plan.combine(jnp.tanh(plan.dispatch(x)))


def _gradients(function, plan, x, *args):
  """Output and gradients by weights and tokens."""

  def loss(weights, x):
    y = function(dataclasses.replace(plan, weights=weights), x, *args)
    return jnp.sum(y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)), y

  return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(plan.weights, x)


@pytest.mark.parametrize(("choice", "parts"), [("expert", 1), ("token", 2)])
def test_kernels_equal_products_with_routing_tensors(choice, parts):
  plan, x = _plan(choice), _tokens()
  assert jnp.any(plan.tokens == S) == (choice == "token")
  found = _gradients(_by_kernels, plan, x, parts)
  expected = _gradients(_by_tensors, plan, x)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def test_rows_of_a_part_are_those_of_its_groups():
  plan, x = _plan("expert"), _tokens()
  parts = dispatch(x, plan.tokens, S, 2, True)
  for index, rows in enumerate(parts):
    inputs = plan.part(index, 2).dispatch(x[8 * index : 8 * index + 8])
    np.testing.assert_array_equal(
      rows, inputs.swapaxes(1, 2).reshape(rows.shape)
    )


def test_sums_of_bfloat16_are_float32():
  plan, x = _plan("expert"), _tokens("bfloat16")
  found = _by_kernels(plan, x, 2)
  assert found.dtype == jnp.bfloat16
  expected = _by_tensors(plan, x.astype("float32"))
  error = np.abs(np.float32(found) - expected).max()
  assert error < 0.01 * np.abs(expected).max()


def test_other_shapes_are_left_to_xla():
  plan = _plan("expert")
  assert is_supported(plan, D, 4)
  assert not is_supported(plan, D + 64, 4)
  assert not is_supported(jax.tree.map(lambda x: x[:12], plan), D, 4)
  shape = G, E, 400
  many = IndexPlan(jnp.zeros(shape, jnp.int32), jnp.ones(shape), S)
  assert not is_supported(many, D, 4)
