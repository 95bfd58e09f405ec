"""Dropless routing equals token choice with unlimited capacity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from vmoe_study.nn.moe import Moe, MoeOptions
from vmoe_study.routing import grouped
from vmoe_study.routing.exchange import Exchange
from vmoe_study.routing.grouped import Layout

pytestmark = [pytest.mark.slow, pytest.mark.eight_devices]

SHAPE = 16, 6, 8  # B L D
E, K = 8, 2
AXES = ("replica", "expert")

ALONE = Exchange()


def _layer(name, exchange=ALONE, **options):
  options |= {"num_experts": E, "num_selected_experts": K}
  options["importance_loss_weight"] = 0.1
  moe = MoeOptions(name, options, group_images=2)
  return Moe(moe, mlp_dim=12, exchange=exchange)


def _outcome(layer, params, x):
  """Gradients in parameters and tokens, output and aux of a training step."""

  def loss(params, x):
    rngs = {"router": jax.random.key(1)}
    y, aux = layer.apply(params, x, False, rngs=rngs)
    target = jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
    return jnp.mean((y - target) ** 2) + aux.auxiliary_loss.mean(), (y, aux)

  return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x)


@pytest.fixture(scope="module")
def given():
  """Parameters and tokens; one expert is much more popular than the others."""
  x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
  layer = _layer("dropless_token_choice")
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
  other = _layer("softmax_token_choice")
  assert shapes == jax.eval_shape(other.init, jax.random.key(0), x)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda p: np.float32(0.5 * rng.normal(size=p.shape)), shapes
  )
  x[..., 0] = 1
  params["params"]["Router"]["dense"]["kernel"][0, 3] += 2
  return params, x


@pytest.fixture(scope="module")
def unlimited(given):
  layer = _layer("softmax_token_choice", capacity_factor=float(E))
  outcome = _outcome(layer, *given)
  assert outcome[1][1].tokens_per_expert[:, 3].min() > 8  # Twice its share.
  return outcome


def _assert_equal(found, expected):
  for one, other in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    scale = max(np.abs(other).max(), 1e-6)
    np.testing.assert_allclose(one, other, atol=1e-5 * scale)


@pytest.mark.parametrize("block", [1, 32])
def test_equals_unlimited_capacity(block, given, unlimited, monkeypatch):
  """In blocks, and by the ragged product of TPUs and GPUs."""
  monkeypatch.setattr(grouped, "block_size", lambda: block)
  _assert_equal(_outcome(_layer("dropless_token_choice"), *given), unlimited)


# Buffers for the worst case only (100); for the balanced share, which these
# tokens exceed (1); and large enough for them (6).
@pytest.mark.device
@pytest.mark.parametrize(
  ("mesh", "room"),
  [
    ((8, 1), 100.0),
    ((2, 4), 100.0),
    ((2, 4), 1.0),
    ((1, 8), 1.0),
    ((1, 8), 6.0),
  ],
)
def test_equals_unlimited_capacity_on_meshes(
  mesh, room, given, unlimited, monkeypatch
):
  monkeypatch.setattr(grouped, "MAX_IMBALANCE", room)
  devices = jax.devices()[: mesh[0] * mesh[1]]
  mesh = jax.make_mesh(
    mesh, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
  )
  layer = _layer("dropless_token_choice", Exchange(mesh))
  _assert_equal(_outcome(layer, *given), unlimited)


@pytest.mark.parametrize("block", [1, 4])
def test_a_layout_has_a_place_for_every_row(block):
  experts = np.array([2, 0, 2, 2, 4, 2, 0, 4, 2])  # 4 = E: of no expert.
  layout = Layout.of(jnp.asarray(experts), 4, block)
  places = np.asarray(layout.place)
  counts = np.bincount(experts, minlength=5)[:4]
  np.testing.assert_array_equal(layout.loads, -(-counts // block) * block)
  assert np.all(places[experts == 4] == layout.size)
  assert len(set(places[experts < 4])) == 7
  starts = np.cumsum(layout.loads) - layout.loads
  for expert in range(4):
    mine = places[experts == expert]
    np.testing.assert_array_equal(mine, starts[expert] + np.arange(len(mine)))


@pytest.mark.parametrize("block", [1, 4])
def test_rows_are_multiplied_by_the_kernel_of_their_expert(block):
  rng = np.random.default_rng(0)
  experts = rng.integers(0, 3, 20)
  x, kernel = rng.normal(size=(20, 5)), rng.normal(size=(3, 5, 6))
  bias = rng.normal(size=(3, 6))
  layout = Layout.of(jnp.asarray(experts), 3, block)
  rows = jnp.zeros((layout.size, 5)).at[layout.place].set(jnp.float32(x))
  layer = {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}
  found = layout.dense(rows, layer)[layout.place]
  expected = np.einsum("nd,ndf->nf", x, kernel[experts]) + bias[experts]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_dropout_of_experts_is_refused():
  moe = MoeOptions("dropless_token_choice", {"num_experts": E})
  layer = Moe(moe, 12, dropout_rate=0.1)
  with pytest.raises(ValueError, match="dropout.*0"):
    jax.eval_shape(layer.init, jax.random.key(0), np.zeros(SHAPE, np.float32))
