"""The mixture-of-experts layer against a loop over slots."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.nn.mlp import Mlp
from vmoe_study.nn.moe import Moe, MoeOptions, group_images
from vmoe_study.nn.parameter_names import ROUTER, ROUTER_STATE
from vmoe_study.nn.zoo import ROUTERS, make_router

from ..routers import EVERY_KIND

B, L, D, F, E = 4, 6, 8, 5, 3


@pytest.fixture(scope="module")
def x():
  return jax.random.normal(jax.random.key(0), (B, L, D))


def _layer(name, images=1, **fields):
  options = {"num_experts": E}
  return Moe(MoeOptions(name, options, group_images=images, **fields), F)


def _params(layer, x):
  shapes = jax.eval_shape(lambda x: layer.init(jax.random.key(0), x), x)
  random = np.random.default_rng(1)
  return jax.tree.map(
    lambda p: jnp.float32(0.5 * random.normal(size=p.shape)), shapes["params"]
  )


CASES = [pytest.param(*k.values, 2, marks=k.marks) for k in EVERY_KIND]
CASES += [("softmax_expert_choice", 1)]


@pytest.mark.parametrize(("name", "images"), CASES)
def test_equals_a_loop_over_slots(name, images, x):
  layer = _layer(name, images)
  params = _params(layer, x)
  router = make_router(name, **layer.moe.options)
  controller = getattr(router, "controller", None)
  state = {ROUTER: controller.initial_state(E)} if controller else {}
  y, aux = jax.jit(layer.apply)({"params": params, ROUTER_STATE: state}, x)

  groups = np.asarray(x).reshape(B // images, images * L, D)
  own = {
    "params": params.get(ROUTER, {}),
    ROUTER_STATE: state.get(ROUTER, {}),
  }
  plan, expected_aux = jax.jit(router.apply)(own, jnp.asarray(groups))
  dispatch, combine = plan.dispatch_tensor(), plan.combine_tensor()
  expected = np.zeros(groups.shape)
  for e in range(dispatch.shape[2]):
    expert = {"params": jax.tree.map(lambda p, e=e: p[e], params["Mlp"])}
    slots = np.einsum("gsc,gsd->gcd", dispatch[:, :, e], groups)
    outputs = Mlp(F).apply(expert, jnp.float32(slots))
    expected += np.einsum("gsc,gcd->gsd", combine[:, :, e], outputs)
  np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-5)
  for one, other in zip(
    jax.tree.leaves(aux), jax.tree.leaves(expected_aux), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_experts_may_share_their_initial_values(shared, x):
  layer = _layer("softmax_expert_choice", shared_expert_init=shared)
  params = jax.jit(layer.init)(jax.random.key(0), x)["params"]
  assert params["Mlp"]["Dense_0"]["kernel"].shape == (E, D, F)
  for layer in ("Dense_0", "Dense_1"):
    kernel = params["Mlp"][layer]["kernel"]
    for e in range(1, E):
      assert np.array_equal(kernel[0], kernel[e]) == shared


@pytest.mark.slow
@pytest.mark.parametrize(("shared", "share"), [(False, 1 / 8), (True, 1 / 2)])
def test_experts_drop_different_units_unless_they_start_equal(shared, share):
  """Three equal experts get equal inputs; every output is their mean.

  Half of the outputs are zero if all experts drop the same units, an eighth
  otherwise.
  """
  x = jax.random.normal(jax.random.key(0), (B, E, 64))
  layer = _layer("soft").clone(dropout_rate=0.5)
  moe = dataclasses.replace(layer.moe, shared_expert_init=shared)
  layer = layer.clone(moe=moe)
  params = _params(layer, x)
  params["Router"]["scale"] = jnp.zeros(())
  params["Mlp"] = jax.tree.map(
    lambda p: jnp.broadcast_to(p[:1], p.shape), params["Mlp"]
  )
  rngs = {"dropout": jax.random.key(1)}
  y, _ = layer.apply({"params": params}, x, False, rngs=rngs)
  assert abs(np.mean(y == 0) - share) < 0.1


def test_groups_are_consecutive_images():
  x = jnp.arange(B * L * D, dtype=jnp.float32).reshape(B, L, D)
  grouped = group_images(x, 2)
  np.testing.assert_array_equal(grouped[1, :L], x[2])
  np.testing.assert_array_equal(grouped[1, L:], x[3])


@pytest.mark.parametrize("images", [0, -1, 3, 8])
def test_groups_must_divide_the_batch(images, x):
  with pytest.raises(ValueError, match=rf"group_images={images}:.*4 images"):
    group_images(x, images)


def test_a_dense_model_has_no_router():
  assert not MoeOptions("dense").is_routed
  assert not MoeOptions("dense").is_sparse
  MoeOptions("dense").check_router()
  with pytest.raises(ValueError, match=r"options=.*'num_experts'.*empty"):
    MoeOptions("dense", {"num_experts": 4}).check_router()
  with pytest.raises(ValueError, match="'dense'"):
    make_router("dense")


def test_routed_options_are_checked():
  assert not MoeOptions("soft").is_sparse
  assert MoeOptions("sinkhorn_expert_choice").is_sparse
  MoeOptions("soft", {"num_experts": 4}).check_router()
  with pytest.raises(ValueError, match=r"soft\.num_experts.*must be given"):
    MoeOptions("soft").check_router()
  with pytest.raises(ValueError, match="'denes'.*mean 'dense'") as error:
    MoeOptions("denes").check_router()
  assert all(name in str(error.value) for name in ROUTERS)
