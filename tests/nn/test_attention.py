"""Attention: both implementations against Flax's and against the definition."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from vmoe_study.nn import attention as attention_module
from vmoe_study.nn.attention import Attention
from vmoe_study.nn.fused_attention import fused_attention, is_supported
from vmoe_study.routing.exchange import Exchange

pytestmark = pytest.mark.slow

# Shapes (B, L, heads, D_head), and whether queries and keys are normalised. One
# head fills registers, two share them, or they start anywhere.
CASES = [
  ((2, 49, 1, 128), True),
  ((3, 20, 4, 64), False),
  ((2, 7, 8, 80), True),
]


def _flax(num_heads, qk_norm):
  return nn.MultiHeadDotProductAttention(
    num_heads,
    normalize_qk=qk_norm,
    kernel_init=nn.initializers.xavier_uniform(),
  )


@pytest.fixture
def fused(monkeypatch):
  """Takes the kernel for TPUs, and runs it without one."""
  interpreted = functools.partial(fused_attention, interpret=True)
  monkeypatch.setattr(attention_module, "fused_attention", interpreted)
  monkeypatch.setattr(Exchange, "platform", "tpu")


def _draw(shape, qk_norm):
  """Random tokens, and parameters of Flax's layer."""
  batch, length, heads, size = shape
  random = np.random.default_rng(0)
  x = jnp.float32(random.normal(size=(batch, length, heads * size)))
  shapes = jax.eval_shape(_flax(heads, qk_norm).init, jax.random.key(0), x)

  def draw(path, leaf):
    scale = 1.0 if len(leaf.shape) == 1 else leaf.shape[0] ** -0.5
    return jnp.float32(scale * random.normal(size=leaf.shape))

  return x, jax.tree.map_with_path(draw, shapes["params"])


def _gradients(layer, params, *inputs):
  """Output and gradients by parameters and inputs."""

  def loss(params, *inputs):
    y = layer.apply({"params": params}, *inputs)
    return jnp.sum(y * jnp.sin(jnp.arange(y.size)).reshape(y.shape)), y

  wanted = tuple(range(1 + len(inputs)))
  return jax.jit(jax.grad(loss, wanted, has_aux=True))(params, *inputs)


def _assert_close(found, expected, rtol=1e-5):
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    # The gradient of a key's bias is zero but for rounding.
    scale = max(np.abs(other).max(), 0.05 * largest)
    np.testing.assert_allclose(one, other, atol=rtol * scale)


@pytest.mark.parametrize("shape, qk_norm", CASES)
def test_fused_attention_equals_flax(shape, qk_norm, fused):
  x, params = _draw(shape, qk_norm)
  found = _gradients(Attention(shape[2], qk_norm=qk_norm), params, x)
  expected = _gradients(_flax(shape[2], qk_norm), params, x)
  _assert_close(found, expected)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_equals_flax(qk_norm):
  x, params = _draw((2, 7, 2, 8), qk_norm)
  found = _gradients(Attention(2, qk_norm=qk_norm), params, x)
  expected = _gradients(_flax(2, qk_norm), params, x)
  _assert_close(found, expected)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_other_queries_equal_flax(qk_norm, fused):
  x, params = _draw((2, 7, 1, 128), qk_norm)
  queries = x[:, :3] * 2
  layer = Attention(1, qk_norm=qk_norm)
  found = layer.apply({"params": params}, x, queries)
  expected = _flax(1, qk_norm).apply({"params": params}, queries, x)
  _assert_close(found, expected)


def test_parameters_are_those_of_flax():
  x, _ = _draw((1, 3, 2, 8), True)
  expected = jax.jit(_flax(2, True).init)(jax.random.key(3), x)
  found = jax.jit(Attention(2, qk_norm=True).init)(jax.random.key(3), x)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_bfloat16_rounds_weights_only(fused):
  """Softmax and sums are float32: as exact as rounded operands allow."""
  x, params = _draw((1, 49, 2, 64), False)
  expected = _flax(2, False).apply({"params": params}, x)
  found = Attention(2, "bfloat16").apply({"params": params}, x)
  assert found.dtype == jnp.bfloat16
  error = np.abs(np.float32(found) - expected).max()
  assert error < 0.02 * np.abs(expected).max()


def test_large_scores_are_finite(fused):
  x, params = _draw((1, 7, 1, 128), False)
  found = _gradients(Attention(1), params, 100 * x)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_long_rows_and_odd_widths_are_left_to_xla():
  assert is_supported(257, 16, 1280)
  assert is_supported(197, 12, 768)
  assert not is_supported(197, 3, 192)
  assert not is_supported(1025, 12, 768)


@pytest.mark.device
def test_fused_attention_on_a_mesh_equals_one_device(fused):
  x, params = _draw((16, 5, 2, 64), False)
  axes = "replica", "expert"
  mesh = jax.make_mesh((2, 4), axes, axis_types=(AxisType.Auto,) * 2)
  sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P(axes)))
  layer = Attention(2)
  expected = _gradients(layer, params, x)
  on_mesh = layer.clone(exchange=Exchange(mesh))
  _assert_close(_gradients(on_mesh, params, sharded), expected)
