"""The names are those of real models, and of the public V-MoE code."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from vmoe_study.nn import parameter_names as names
from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.vit import VisionTransformer

BLOCK = "Encoder/encoderblock_1"
# Written out, as checkpoints on disk have them.
DENSE = {
  "Encoder/encoder_norm/bias",
  "Encoder/posembed_input/pos_embedding",
  "Encoder/encoderblock_1/LayerNorm_0/scale",
  "Encoder/encoderblock_1/LayerNorm_1/bias",
  "Encoder/encoderblock_1/Mlp/Dense_0/kernel",
  "Encoder/encoderblock_1/Mlp/Dense_1/bias",
  "Encoder/encoderblock_1/SelfAttention/query/kernel",
  "cls",
  "embedding/kernel",
  "head/bias",
  "pre_logits/kernel",
}
ROUTED = {
  "Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel",
  "Encoder/encoderblock_1/Moe/Mlp/Dense_1/bias",
  "Encoder/encoderblock_1/Moe/Router/dense/kernel",
}


@functools.cache
def paths(router="dense", pool="token"):
  """Shapes of a small model's parameters, by path."""
  model = VisionTransformer(
    num_classes=3,
    patch_size=4,
    width=8,
    depth=2,
    mlp_dim=16,
    num_heads=2,
    representation_size=8,
    pool=pool,
    moe=MoeOptions(router, {"num_experts": 5}, (1,)),
  )
  images = jnp.zeros((1, 8, 8, 3))
  init = lambda x: model.init(jax.random.key(0), x)["params"]  # noqa: E731
  return flatten_dict(jax.eval_shape(init, images), sep="/")


def test_parameters_have_the_names_of_public_checkpoints():
  assert paths().keys() >= DENSE
  assert paths("softmax_token_choice").keys() >= ROUTED
  assert "MapHead/probe" in paths(pool="map")
  assert f"{BLOCK}/Moe/Router/mu" in paths("soft")


def test_paths_of_single_parameters():
  known = paths("soft", "token")
  assert names.POSITIONS in known
  assert names.CLASS_TOKEN in known
  for module in (names.EMBEDDING, names.PRE_LOGITS, names.HEAD):
    assert f"{module}/kernel" in known
  block = f"{names.ENCODER}/{names.block_name(1)}"
  assert block == BLOCK
  assert f"{block}/{names.ATTENTION}/out/kernel" in known
  assert f"{block}/{names.MOE}/{names.ROUTER}/{names.SLOT_EMBEDDING}" in known
  for layer in (names.MLP_INPUT, names.MLP_OUTPUT):
    assert f"{block}/{names.EXPERTS}/{layer}/kernel" in known


@pytest.mark.parametrize("router", ["dense", "softmax_token_choice", "soft"])
def test_every_parameter_of_a_routed_block_is_an_experts_or_a_routers(router):
  shapes = paths(router)
  for path, shape in shapes.items():
    assert names.in_moe(path) == (
      names.in_experts(path) or names.in_router(path)
    )
    if names.in_experts(path):
      assert shape.shape == (5, *paths()[names.dense_path(path)].shape)
  kinds = {names.in_experts, names.in_router}
  found = {kind for kind in kinds for path in shapes if kind(path)}
  assert found == (set() if router == "dense" else kinds)
  heads = {path for path in paths(pool="map") if names.in_head(path)}
  assert heads == {"head/bias", "head/kernel"}
