"""What routers do, against plain loops over the routing tensors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from vmoe_study.inspection import content, effects, measure
from vmoe_study.nn import parameter_names as names
from vmoe_study.nn.moe import Moe, MoeOptions, make_experts
from vmoe_study.nn.vit import VisionTransformer
from vmoe_study.nn.zoo import ROUTERS

from ..routers import EVERY_KIND

pytestmark = pytest.mark.slow

BATCH, TOKENS, EXPERTS, GROUP = 4, 5, 4, 2
LAYER = "encoderblock_1"
IMAGES = jax.random.normal(jax.random.key(0), (BATCH, 8, 8, 1))
CLASSES = [0, 1, 2, 0]
BATCHED = {
  "image": IMAGES,
  "label": np.eye(3)[CLASSES],
  "mask": np.ones(BATCH),
}


def make_module(router, pool="token"):
  options = {"num_experts": EXPERTS, "capacity_factor": 0.4}
  if router.endswith("token_choice"):
    options["num_selected_experts"] = 2
  valid = ROUTERS[router].options()
  options = {k: v for k, v in options.items() if k in valid}
  return VisionTransformer(
    num_classes=3,
    patch_size=4,
    width=8,
    depth=2,
    mlp_dim=16,
    num_heads=2,
    pool=pool,
    moe=MoeOptions(router, options, blocks=(1,), group_images=GROUP),
  )


def make_params(module, collection="params"):
  """Random values of order 1 everywhere, also where training starts at 0."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
  leaves, tree = jax.tree.flatten(shapes.get(collection, {}))
  rng = np.random.default_rng(0)
  return tree.unflatten([rng.normal(size=s.shape) for s in leaves])


def measure_routing(module):
  """Compiled measure of the routing of every layer, by image and by patch."""
  return measure.measure_routing(
    module,
    lambda tokens, images: (
      measure.image_routing(tokens),
      content.patch_routing(tokens, images, patch_size=4),
    ),
  )


class Layer:
  """A model with random parameters, and what went in and out of its layer.

  `apply` returns the layer's input, output, logits and two tensors; `measure`
  is that of `measure_routing`. Both are compiled.
  """

  def __init__(self, router):
    self.module = make_module(router)
    self.params = make_params(self.module)
    if router == "relu":  # Else no logit is positive.
      self.params["Encoder"][LAYER]["Moe"]["Router"]["dense"]["kernel"] *= -1
    state = make_params(self.module, names.ROUTER_STATE)
    self.variables = {"params": self.params, names.ROUTER_STATE: state}
    self.measure = measure_routing(self.module)
    seen = []

    def watch(call, args, kwargs, context):
      result = call(*args, **kwargs)
      if isinstance(context.module, Moe) and context.method_name == "__call__":
        seen[:] = args[0], result[0]
      return result

    @jax.jit
    def apply(variables, images):
      with nn.intercept_methods(watch):
        plan, logits = measure.capture_routing(self.module, variables, images)[
          LAYER
        ]
      return *seen, logits.clean, plan.dispatch_tensor(), plan.combine_tensor()

    self.apply = apply
    self.x, self.y, *found = apply(self.variables, IMAGES)
    self.logits, self.dispatch, self.combine = jax.device_get(found)

  def output(self, without=()):
    """Of the layer, by its definition, with the outputs of experts missing."""
    x = self.x.reshape(BATCH // GROUP, -1, self.x.shape[2])
    inputs = np.einsum("gsec,gsd->egcd", self.dispatch, x)
    experts = self.params["Encoder"][LAYER]["Moe"]["Mlp"]
    outputs = make_experts(16).apply({"params": experts}, inputs, True)
    outputs = np.array(outputs)
    outputs[list(without)] = 0
    y = np.einsum("gsec,egcd->gsd", self.combine, outputs)
    return y.reshape(self.x.shape)


@pytest.fixture(scope="module", params=EVERY_KIND)
def layer(request):
  return Layer(request.param)


def test_the_plan_is_what_the_layer_computed_with(layer):
  assert layer.x.shape == (BATCH, TOKENS, 8)
  np.testing.assert_allclose(layer.output(), layer.y, rtol=1e-3, atol=1e-3)


def test_image_routing_is_what_loops_count(layer):
  found, _ = jax.device_get(layer.measure(layer.variables, BATCHED))[LAYER]
  some_unprocessed = False
  for image in range(BATCH):
    sent, returned = np.zeros(EXPERTS), np.zeros(EXPERTS)
    counts, nats = np.zeros(EXPERTS + 1), 0.0
    for token in range(TOKENS):
      group, row = divmod(image * TOKENS + token, GROUP * TOKENS)
      served = 0
      for expert in range(EXPERTS):
        served += any(layer.dispatch[group, row, expert] > 0)
        sent[expert] += sum(layer.dispatch[group, row, expert])
        returned[expert] += sum(layer.combine[group, row, expert])
      counts[served] += 1
      logits = layer.logits[group, row]
      chances = softmax(logits).reshape(EXPERTS, -1).sum(axis=1)
      nats += entropy(chances)
    np.testing.assert_allclose(found.dispatched[image], sent, rtol=1e-5)
    np.testing.assert_allclose(found.combined[image], returned, rtol=1e-4)
    np.testing.assert_array_equal(found.tokens_by_experts[image], counts)
    np.testing.assert_allclose(found.entropy[image], nats, rtol=1e-3)
    some_unprocessed |= counts[0] > 0
  promised = ROUTERS[layer.module.moe.router].guarantees.all_processed_if
  if promised != "always":  # Else this tests less than it seems to.
    assert some_unprocessed


def test_patches_with_content_are_what_loops_count(layer):
  images = np.array(IMAGES)
  images[0, :4, :4] = images[1, 4:, :4] = 0.5  # Background.
  images[2] = 0.5  # A blank image has none.
  batch = {**BATCHED, "image": images}
  _, found = jax.device_get(layer.measure(layer.variables, batch))[LAYER]
  *_, dispatch, _ = jax.device_get(layer.apply(layer.variables, images))
  for image in range(BATCH):
    expected = np.zeros((3, 2))
    for patch in range(TOKENS - 1):  # The first token is the class token.
      row, column = divmod(patch, 2)
      pixels = images[image, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
      kind = int(pixels.max() > pixels.min())
      place = image * TOKENS + 1 + patch
      sent = dispatch[divmod(place, GROUP * TOKENS)].sum(axis=1)
      expected[:, kind] += 1, sent.sum(), not sent.any()
    np.testing.assert_allclose([x[image] for x in found], expected, atol=1e-5)
  np.testing.assert_array_equal(found.patches[:, 0], [1, 1, 4, 0])


def test_faint_noise_is_no_content():
  images = np.array(IMAGES)
  deviation = images.std(axis=(1, 2))[:, 0]
  for factor, has in ((0.1, False), (0.5, True)):
    patch = images[:, :4, :4]
    patch *= (
      factor * (deviation / patch.std(axis=(1, 2))[:, 0])[:, None, None, None]
    )
    found = content.has_content(images, 4)
    assert (found[:, 0] == has).all() and found[:, 1:].all()


def test_what_is_shown_is_the_first_group(layer):
  shown = measure.measure_layer_routing(layer.module)(layer.variables, IMAGES)[
    LAYER
  ]
  np.testing.assert_allclose(shown.dispatch, layer.dispatch[0], atol=1e-5)
  np.testing.assert_allclose(shown.combine, layer.combine[0], atol=1e-5)
  assert shown.tokens.dispatched.shape == (BATCH, TOKENS, EXPERTS)


def test_a_silent_expert_adds_nothing(layer):
  """And the others what they did."""
  busiest = int(layer.combine.sum(axis=(0, 1, 3)).argmax())
  keep = {LAYER: jnp.ones(EXPERTS).at[busiest].set(0.0)}
  silent = effects.scale_experts(layer.params, keep)
  moe = silent["Encoder"][LAYER]["Moe"]
  state = layer.variables[names.ROUTER_STATE].get("Encoder", {})
  state = state.get(LAYER, {}).get("Moe", {})
  y, _ = Moe(layer.module.moe, 16).apply(
    {"params": moe, names.ROUTER_STATE: state}, layer.x
  )
  expected = layer.output(without=[busiest])
  np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)
  assert np.abs(expected - layer.y).max() > 0.1


def test_ablation_goes_through_all_experts_and_then_none():
  module = make_module("softmax_token_choice", pool="gap")
  params = make_params(module)
  params["head"]["bias"][:] = 0
  params["Encoder"]["encoder_norm"]["bias"][:] = 0
  params["Encoder"][LAYER]["Moe"]["Mlp"]["Dense_1"]["kernel"] *= 30
  found = effects.measure_ablation(module)({"params": params}, BATCHED)[LAYER]
  assert found.shape == (BATCH, EXPERTS + 1)
  for column, without in enumerate([[0], [1], [2], [3], [0, 1, 2, 3]]):
    silent = jax.tree.map(np.copy, params)
    last = silent["Encoder"][LAYER]["Moe"]["Mlp"]["Dense_1"]
    last["kernel"][without] = last["bias"][without] = 0
    logits, _ = module.apply({"params": silent}, IMAGES)
    expected = np.asarray(logits).argmax(axis=1) == CLASSES
    np.testing.assert_array_equal(found[:, column], expected)
  assert len(np.unique(found, axis=1).T) > 1


def test_every_image_counts_once_and_padding_not_at_all():
  first = {**BATCHED, "image": np.arange(4)}
  last = {**BATCHED, "image": np.arange(4, 8), "mask": np.array([1, 1, 0, 0])}
  measures = {
    "image": lambda scale, batch: scale * batch["image"],
    "pair": lambda scale, batch: {"a": (batch["label"], batch["image"])},
  }
  found = measure.measure_images(
    measures, 10, [first, last], lambda batch: batch
  )
  np.testing.assert_array_equal(found["image"], 10 * np.arange(6))
  np.testing.assert_array_equal(found["pair"]["a"][1], np.arange(6))
  assert found["pair"]["a"][0].shape == (6, 3)


def test_a_dense_model_has_no_layers():
  module = make_module("softmax_expert_choice").clone(moe=None)
  assert measure.layer_names(module) == ()
  params = make_params(module)
  assert measure_routing(module)({"params": params}, BATCHED) == {}
  assert effects.measure_ablation(module)({"params": params}, BATCHED) == {}
