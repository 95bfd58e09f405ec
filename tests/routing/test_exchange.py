"""A layer on eight devices equals one on a single device; its transfers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from vmoe_study.nn.moe import Moe, MoeOptions
from vmoe_study.nn.parameter_names import ROUTER_STATE
from vmoe_study.nn.zoo import ROUTERS
from vmoe_study.routing import exchange as exchange_module
from vmoe_study.routing import slot_kernel
from vmoe_study.routing.exchange import Exchange

pytestmark = [pytest.mark.device, pytest.mark.eight_devices]

SHAPE = 16, 6, 8  # B L D
AXES = ("replica", "expert")


@pytest.fixture(scope="module")
def mesh():
  return jax.make_mesh((2, 4), AXES, axis_types=(AxisType.Auto,) * 2)


@pytest.fixture(scope="module")
def x():
  return jax.random.normal(jax.random.key(0), SHAPE)


def _layer(name, exchange):
  options = {"num_experts": 8, "noise_std": 1.0, "capacity_factor": 2.0}
  options["importance_loss_weight"] = 0.1
  valid = ROUTERS[name].options()
  options = {k: v for k, v in options.items() if k in valid}
  moe = MoeOptions(name, options, group_images=2)
  return Moe(moe, mlp_dim=12, exchange=exchange)


@pytest.fixture(scope="module")
def params(x):
  """Draws random parameters for a router's layer, without compilation."""

  def draw(name, x=x):
    layer = _layer(name, Exchange())
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(
      lambda p: np.float32(0.3 * random.normal(size=p.shape)), shapes
    )

  return draw


def _forward(layer):
  def forward(params, x):
    rngs = {"router": jax.random.key(1)}
    outputs, _ = layer.apply(  # States of routers are as at the start.
      {"params": params}, x, False, rngs=rngs, mutable=[ROUTER_STATE]
    )
    return outputs

  return forward


def _backward(layer):
  def loss(params, x):
    y, aux = _forward(layer)(params, x)
    target = jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    total = jnp.mean((y - target) ** 2) + aux.auxiliary_loss.mean()
    return total, (y, aux)

  return jax.grad(loss, argnums=(0, 1), has_aux=True)


def _shard(mesh, params, x):
  def sharding(*axes):
    return NamedSharding(mesh, PartitionSpec(*axes))

  placed = {
    "Mlp": jax.device_put(params["Mlp"], sharding("expert")),
    "Router": jax.device_put(params.get("Router", {}), sharding()),
  }
  return placed, jax.device_put(x, sharding(AXES))


def _count(compiled, operation):
  starts = rf"\s{operation}(-start)?\("
  return len(re.findall(starts, compiled.as_text()))


# Dropless routing has an exchange of its own: `test_grouped`.
SLOTTED = [n for n, spec in ROUTERS.items() if not spec.router.is_dropless]


@pytest.mark.parametrize("name", SLOTTED)
def test_equals_one_device_with_four_transfers(name, mesh, x, params):
  alone = _layer(name, Exchange())
  arguments = params(name), x
  expected = jax.jit(_backward(alone))(*arguments)

  arguments = _shard(mesh, *arguments)
  function = jax.jit(_backward(_layer(name, Exchange(mesh))))
  compiled = function.lower(*arguments).compile()
  assert _count(compiled, "all-to-all") == 4
  assert _count(compiled, "all-gather") == 0

  for one, other in zip(
    jax.tree.leaves(compiled(*arguments)),
    jax.tree.leaves(expected),
    strict=True,
  ):
    scale = np.abs(other).max()
    np.testing.assert_allclose(one, other, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["softmax_token_choice", "soft"])
def test_tpus_exchange_sixteen_local_groups_in_two_parts(
  name, mesh, params, monkeypatch
):
  x = jax.random.normal(jax.random.key(0), (256, 6, 8))
  arguments = params(name, x), x
  expected = jax.jit(_backward(_layer(name, Exchange())))(*arguments)
  monkeypatch.setattr(Exchange, "platform", "tpu")
  arguments = _shard(mesh, *arguments)
  function = jax.jit(_backward(_layer(name, Exchange(mesh))))
  compiled = function.lower(*arguments).compile()
  assert _count(compiled, "all-to-all") == 8
  assert _count(compiled, "all-gather") == 0
  found = jax.tree.leaves(compiled(*arguments))
  for one, other in zip(found, jax.tree.leaves(expected), strict=True):
    scale = np.abs(other).max()
    np.testing.assert_allclose(one, other, atol=1e-5 * scale)
  layer = _layer(name, Exchange(mesh))
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
  assert shapes == jax.eval_shape(lambda: params(name))


def test_tpus_make_the_rows_in_kernels(mesh, monkeypatch, params):
  name = "softmax_token_choice"
  x = jax.random.normal(jax.random.key(0), (256, 6, 128))  # Two parts.
  arguments = params(name, x), x
  expected = jax.jit(_backward(_layer(name, Exchange())))(*arguments)
  monkeypatch.setattr(Exchange, "platform", "tpu")
  for kernel in (slot_kernel.dispatch, slot_kernel.combine):
    emulated = functools.partial(kernel, interpret=True)
    monkeypatch.setattr(exchange_module, kernel.__name__, emulated)
  arguments = _shard(mesh, *arguments)
  found = jax.jit(_backward(_layer(name, Exchange(mesh))))(*arguments)
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    scale = np.abs(other).max()
    np.testing.assert_allclose(one, other, atol=1e-5 * scale)


@pytest.mark.parametrize("name", ["softmax_token_choice", "soft"])
def test_forward_takes_two_transfers(name, mesh, x, params):
  arguments = _shard(mesh, params(name), x)
  function = jax.jit(_forward(_layer(name, Exchange(mesh))))
  compiled = function.lower(*arguments).compile()
  assert _count(compiled, "all-to-all") == 2
  assert _count(compiled, "all-gather") == 0
  assert _count(compiled, "all-reduce") == 0


def test_without_expert_parallelism_nothing_is_sent(x, params):
  mesh = jax.make_mesh((8, 1), AXES, axis_types=(AxisType.Auto,) * 2)
  name = "softmax_expert_choice"
  arguments = _shard(mesh, params(name), x)
  function = jax.jit(_forward(_layer(name, Exchange(mesh))))
  compiled = function.lower(*arguments).compile()
  for operation in ("all-to-all", "all-gather", "all-reduce"):
    assert _count(compiled, operation) == 0
