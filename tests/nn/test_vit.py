"""Vision Transformers: their parts, options and errors."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.vit import (
  VisionTransformer,
  backbone_sizes,
  moe_blocks,
  sincos2d,
)

from . import numpy_vit

SIZES = {
  "num_classes": 3,
  "patch_size": 4,
  "width": 16,
  "depth": 2,
  "mlp_dim": 12,
  "num_heads": 2,
}
ATTENTION = "Encoder/encoderblock_1/SelfAttention"
ROUTED = MoeOptions("softmax_expert_choice", {"num_experts": 3})


@pytest.fixture(scope="module")
def images():
  """Two images of 8 x 12 pixels, 2 x 3 patches."""
  return jax.random.uniform(jax.random.key(0), (2, 8, 12, 3))


def _shapes(model, images):
  return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def _params(model, images):
  """Random values for every parameter, those that start from zero too."""
  random = np.random.default_rng(1)

  def draw(path, leaf):
    values = 0.3 * random.normal(size=leaf.shape)
    return jnp.float32(values + (path[-1].key == "scale"))

  return jax.tree.map_with_path(draw, _shapes(model, images))


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"pool": "token", "posemb": "sincos2d"},
    {"pool": "token", "representation_size": 5, "qk_norm": True},
    {"pool": "map", "qk_norm": True, "posemb": "sincos2d"},
  ],
  ids=str,
)
def test_equals_plain_numpy(options, images):
  model = VisionTransformer(**SIZES, **options)
  params = _params(model, images)
  logits, outputs = jax.jit(model.apply)({"params": params}, images)
  exact = jax.tree.map(np.float64, params)
  for i, image in enumerate(np.float64(images)):
    expected_logits, features = numpy_vit.vit(image, exact, patch=4)
    np.testing.assert_allclose(logits[i], expected_logits, atol=1e-4)
    np.testing.assert_allclose(outputs.features[i], features, atol=1e-4)
  assert outputs.aux == {}


@pytest.mark.parametrize(
  "options, added, shape",
  [
    ({"pool": "token"}, "cls", (1, 1, 16)),
    ({"pool": "token"}, "Encoder/posembed_input/pos_embedding", (1, 7, 16)),
    ({"pool": "gap"}, "Encoder/posembed_input/pos_embedding", (1, 6, 16)),
    ({"pool": "map"}, "MapHead/probe", (1, 1, 16)),
    ({"representation_size": 5}, "pre_logits/kernel", (16, 5)),
    ({"qk_norm": True}, f"{ATTENTION}/query_ln/scale", (8,)),
    ({"qk_norm": True}, f"{ATTENTION}/key_ln/scale", (8,)),
  ],
)
def test_options_add_parameters(options, added, shape, images):
  model = VisionTransformer(**SIZES, **options)
  shapes = flatten_dict(_shapes(model, images), sep="/")
  assert shapes[added].shape == shape
  without = VisionTransformer(**SIZES, posemb="sincos2d")
  assert added not in flatten_dict(_shapes(without, images), sep="/")


@pytest.mark.parametrize("grid", [(2, 3), (4, 4)])
def test_sincos2d(grid):
  expected = numpy_vit.sincos2d(*grid, 16)
  np.testing.assert_allclose(sincos2d(*grid, 16), expected, atol=1e-6)


def test_head_starts_from_its_bias(images):
  model = VisionTransformer(**SIZES, head_bias_init=-2.5)
  params = jax.jit(model.init)(jax.random.key(0), images)["params"]
  np.testing.assert_array_equal(params["head"]["bias"], -2.5)
  assert not np.any(params["head"]["kernel"])


def test_dense_router_is_no_router(images):
  plain = VisionTransformer(**SIZES)
  dense = VisionTransformer(**SIZES, moe=MoeOptions("dense"))
  assert _shapes(plain, images) == _shapes(dense, images)


@pytest.mark.slow
def test_moe_blocks_are_named_in_aux(images):
  moe = dataclasses.replace(ROUTED, blocks=(1,))
  model = VisionTransformer(**SIZES, moe=moe)
  shapes = _shapes(model, images)
  assert "Mlp" in shapes["Encoder"]["encoderblock_0"]
  assert set(shapes["Encoder"]["encoderblock_1"]["Moe"]) == {"Mlp", "Router"}

  def of_blocks(variables, images):
    _, outputs = model.apply(variables, images)
    return dict.fromkeys(outputs.aux, 0.0)

  aux = jax.eval_shape(of_blocks, {"params": shapes}, images)
  assert aux.keys() == {"encoderblock_1"}


@pytest.mark.parametrize(
  "rule, depth, blocks",
  [
    ("every 2", 6, (1, 3, 5)),
    ("every 2", 7, (1, 3, 5)),
    ("every 1", 3, (0, 1, 2)),
    ("every 3", 8, (2, 5)),
    ("last 2", 12, (10, 11)),
    ("last 2 odd", 12, (9, 11)),
    ("last 2 odd", 9, (5, 7)),
    ([3, 1, 3], 4, (1, 3)),
    ((0,), 1, (0,)),
  ],
)
def test_moe_block_rules(rule, depth, blocks):
  assert moe_blocks(rule, depth) == blocks


@pytest.mark.parametrize(
  "rule", ["every 0", "first 2", "last", "every 2 odd", "", (4,), (-1,), ()]
)
def test_bad_moe_blocks(rule):
  with pytest.raises(ValueError, match=r"moe\.blocks="):
    moe_blocks(rule, depth=4)


@pytest.mark.parametrize(
  "rule, depth, blocks",
  [("last 5 odd", 4, "1, 3"), ("last 3", 2, "0, 1"), ("last 2 odd", 3, "1")],
)
def test_rules_that_need_more_blocks_than_the_model_has(rule, depth, blocks):
  with pytest.raises(ValueError, match=rf"{rule}.*selects blocks \[{blocks}\]"):
    moe_blocks(rule, depth)


@pytest.mark.parametrize("rule, depth", [("every 3", 2), ("last 1 odd", 1)])
def test_rules_that_pick_no_block(rule, depth):
  with pytest.raises(ValueError, match="selects blocks \\[\\]"):
    moe_blocks(rule, depth)


@pytest.mark.parametrize(
  "name, sizes",
  [
    ("Ti/16", (16, 192, 12, 768, 3)),
    ("S/16", (16, 384, 12, 1536, 6)),
    ("S8/32", (32, 512, 8, 2048, 8)),
    ("B/32", (32, 768, 12, 3072, 12)),
    ("L/16", (16, 1024, 24, 4096, 16)),
    ("H/14", (14, 1280, 32, 5120, 16)),
  ],
)
def test_variants(name, sizes):
  names = "patch_size", "width", "depth", "mlp_dim", "num_heads"
  assert backbone_sizes(name) == dict(zip(names, sizes, strict=True))


@pytest.mark.parametrize("name", ["XL/16", "B", "B/0", "B/16/2", "b/16"])
def test_unknown_variants(name):
  with pytest.raises(ValueError, match=rf"{name}.*'B/16'"):
    backbone_sizes(name)


def _loss_gradients(model, params, images, **apply):
  def loss(params):
    logits, outputs = model.apply({"params": params}, images, **apply)
    return jnp.sum(jnp.sin(logits)) + jnp.sum(jnp.cos(outputs.features))

  return jax.jit(jax.grad(loss))(params)


@pytest.mark.slow
def test_remat_changes_no_gradient(images):
  model = VisionTransformer(**SIZES, moe=ROUTED)
  params = _params(model, images)
  expected = _loss_gradients(model, params, images)
  for remat in ("dots", "full"):
    grads = _loss_gradients(model.clone(remat=remat), params, images)
    for one, other in zip(
      jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True
    ):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_remat_saves_memory(images):
  model = VisionTransformer(**SIZES | {"depth": 3})
  params = _params(model, images)
  images = jnp.tile(images, (16, 1, 1, 1))

  def temporary(remat):
    def loss(params):
      return model.clone(remat=remat).apply({"params": params}, images)[0].sum()

    compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary("full") < temporary("none")


@pytest.mark.slow
def test_bfloat16_leaves_router_and_results_in_float32(images):
  exact = VisionTransformer(**SIZES, moe=ROUTED)
  model = exact.clone(dtype="bfloat16")
  params = _params(exact, images)
  apply = jax.jit(functools.partial(model.apply, capture_intermediates=True))
  outputs, inner = apply({"params": params}, images)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(outputs))
  moe = inner["intermediates"]["Encoder"]["encoderblock_1"]["Moe"]
  (router_logits,) = moe["Router"]["dense"]["__call__"]
  ((tokens, _),) = moe["__call__"]
  assert router_logits.dtype == jnp.float32
  assert tokens.dtype == jnp.bfloat16

  logits, _ = outputs
  expected, _ = jax.jit(exact.apply)({"params": params}, images)
  assert np.abs(logits - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize(
  "options",
  [{}, {"pool": "map", "qk_norm": True}, {"representation_size": 5}],
  ids=str,
)
def test_bfloat16_tokens_are_pooled_in_float32(options, images):
  sizes = SIZES | {"depth": 1} | options
  model = VisionTransformer(**sizes, dtype="bfloat16")
  params = _params(model, images)
  # Not compiled: XLA might pass unrounded tokens to the norm.
  (_, outputs), inner = model.apply(
    {"params": params}, images, capture_intermediates=True
  )
  blocks = inner["intermediates"]["Encoder"]["encoderblock_0"]
  ((tokens, _),) = blocks["__call__"]
  assert tokens.dtype == jnp.bfloat16
  exact = jax.tree.map(np.float64, params)
  for image, features in zip(np.float64(tokens), outputs.features, strict=True):
    expected = numpy_vit.pooled(image, exact)
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "option, value, known",
  [
    ("pool", "tok", "'gap' or 'token' or 'map'"),
    ("posemb", "sincos", "'learned' or 'sincos2d'"),
    ("remat", "x", "'none' or 'dots' or 'full'"),
    ("dtype", "float16", "'float32' or 'bfloat16'"),
  ],
)
def test_unknown_strings(option, value, known):
  with pytest.raises(ValueError, match=rf"{option}='{value}'.*must be {known}"):
    VisionTransformer(**SIZES, **{option: value})


def test_dropout_in_experts_only(images):
  moe = dataclasses.replace(ROUTED, expert_dropout_rate=0.5)
  model = VisionTransformer(**SIZES, moe=moe)
  without = dataclasses.replace(moe, expert_dropout_rate=0.0)
  layers = _dropout_rates(model.clone(moe=without, dropout_rate=0.5), images)
  assert layers.pop("Encoder/encoderblock_1/Moe/Mlp/Dropout_0") == 0
  assert set(layers.values()) == {0.5} and len(layers) == 4
  layers = _dropout_rates(model, images)
  assert layers.pop("Encoder/encoderblock_1/Moe/Mlp/Dropout_0") == 0.5
  assert set(layers.values()) == {0.0}
  with pytest.raises(ValueError, match="expert_dropout_rate=1.0: must be in"):
    dataclasses.replace(ROUTED, expert_dropout_rate=1.0)


def _dropout_rates(model, images):
  """The rate of every dropout module, by path."""
  rates = {}

  def record(call, args, kwargs, context):
    if isinstance(context.module, nn.Dropout):
      rates["/".join(context.module.path)] = context.module.rate
    return call(*args, **kwargs)

  with nn.intercept_methods(record):
    _shapes(model, images)
  return rates


def test_residual_dtype(images):
  """Residual connections and what routers see; the rest computes in `dtype`."""
  model = VisionTransformer(
    **SIZES, moe=ROUTED, dtype="bfloat16", residual_dtype="float32"
  )

  def dtypes(model):
    found = {}

    def record(call, args, kwargs, context):
      outputs = call(*args, **kwargs)
      if context.method_name == "__call__":
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        found["/".join(context.module.path)] = str(first.dtype)
      return outputs

    with nn.intercept_methods(record):
      _shapes(model, images)
    return found

  found, single = dtypes(model), dtypes(model.clone(residual_dtype=None))
  changed = {path for path in found if found[path] != single[path]}
  assert changed == {
    "Encoder/posembed_input",
    "Encoder/Dropout_0",
    "Encoder/encoderblock_0",
    "Encoder/encoderblock_1",
    "Encoder/encoderblock_1/LayerNorm_1",
  }
  assert {found[path] for path in changed} == {"float32"}
  assert {single[path] for path in changed} == {"bfloat16"}


@pytest.mark.slow
def test_dropout(images):
  model = VisionTransformer(**SIZES, moe=ROUTED, dropout_rate=0.5)
  params = _params(model, images)

  @jax.jit
  def train(seed):
    rngs = {name: jax.random.key(seed) for name in ("dropout", "router")}
    return model.apply({"params": params}, images, False, rngs=rngs)[0]

  assert not np.allclose(train(0), train(1))
  np.testing.assert_array_equal(train(0), train(0))
  without = model.clone(dropout_rate=0.0)
  np.testing.assert_array_equal(
    jax.jit(model.apply)({"params": params}, images)[0],
    jax.jit(without.apply)({"params": params}, images)[0],
  )


@pytest.mark.parametrize(
  "options, message",
  [
    ({"patch_size": 5}, "patch_size=5.*divide.*8 x 12"),
    ({"num_heads": 3}, "num_heads=3.*divide width=16"),
    ({"width": 18, "posemb": "sincos2d"}, "width=18.*multiple of 4"),
    (
      {"moe": dataclasses.replace(ROUTED, group_images=3)},
      "group_images=3.*batch of 2",
    ),
    ({"moe": dataclasses.replace(ROUTED, blocks=(2,))}, "from 0 to 1"),
    (
      {"moe": MoeOptions("softmax_expert_choice", {"num_experts": 64})},
      "leaves each expert 0 slots.*S=6",
    ),
  ],
)
def test_bad_sizes(options, message, images):
  model = VisionTransformer(**(SIZES | options))
  with pytest.raises(ValueError, match=message):
    _shapes(model, images)
