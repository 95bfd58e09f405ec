"""Measures what the routers of a trained model do with each image.

A routing plan is a function of the router's logits (see `nn.router`), so it
suffices to capture the logits during a forward pass. Layers have the names of
the parameters, such as "encoderblock_1".
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vmoe_study.console.progress import track
from vmoe_study.nn import parameter_names as names
from vmoe_study.nn.router import Router, RouterLogits
from vmoe_study.nn.vit import VisionTransformer, moe_blocks
from vmoe_study.nn.zoo import make_router
from vmoe_study.routing.plan import RoutingPlan

Batch = Mapping[str, Any]
# (variables, batch) to a tree of arrays with one row per image.
Measure = Callable[[Any, Batch], Any]


class TokenRouting(NamedTuple):
  """Routing of the tokens of a batch in one layer.

  Attributes:
    dispatched: dispatch weight of each token and expert, summed over the
      expert's slots: 0 or 1 for a sparse router.
    combined: combine weight of each token and expert, summed over the expert's
      slots.
    probabilities: softmax of the router logits, without noise; for Soft MoE
      over all slots, summed over those of each expert.
  """

  dispatched: Float[Array, "B L E"]
  combined: Float[Array, "B L E"]
  probabilities: Float[Array, "B L E"]


class ImageRouting(NamedTuple):
  """Routing of the tokens of each image in one layer.

  Attributes:
    dispatched: number of tokens sent to each expert.
    combined: sum of the combine weights of each expert.
    tokens_by_experts: number of tokens that 0, 1, ..., E experts process.
    entropy: entropy of the router's probabilities in nats, summed over tokens.
  """

  dispatched: Float[Array, "B E"]
  combined: Float[Array, "B E"]
  tokens_by_experts: Float[Array, "B E+1"]
  entropy: Float[Array, "B"]


class LayerRouting(NamedTuple):
  """Routing of one layer, as pictures show it.

  Attributes:
    tokens: routing of all tokens.
    dispatch: Dispatch tensor of the first group.
    combine: Combine tensor of the first group.
  """

  tokens: TokenRouting
  dispatch: Float[Array, "S E C"]
  combine: Float[Array, "S E C"]


def layer_names(module: VisionTransformer) -> tuple[str, ...]:
  """Names of the routed blocks in order; empty for a dense model."""
  if module.moe is None or not module.moe.is_routed:
    return ()
  blocks = moe_blocks(module.moe.blocks, module.depth)
  return tuple(map(names.block_name, blocks))


def capture_routing(
  module: VisionTransformer,
  variables: Any,
  images: Float[Array, "B H W channels"],
) -> dict[str, tuple[RoutingPlan, RouterLogits]]:
  """Plan and logits of every routed layer in evaluation, by layer name."""
  _, variables = module.apply(
    variables,
    images,
    capture_intermediates=lambda part, method: (
      isinstance(part, Router) and method == "logits"
    ),
    mutable=["intermediates"],
  )
  found = {}
  for layer in layer_names(module):
    block = variables["intermediates"][names.ENCODER][layer]
    logits = block[names.MOE][names.ROUTER]["logits"][0]
    router = make_router(module.moe.router, **module.moe.options)
    plan, _ = router.route(logits)
    found[layer] = plan, logits
  return found


def token_routing(
  plan: RoutingPlan, logits: RouterLogits, num_images: int
) -> TokenRouting:
  """Sums weights over slots; regroups tokens from (G, S) to images (B, L)."""
  shape_BLE = num_images, -1, plan.tokens_per_expert().shape[1]
  logits_GSX = logits.clean.reshape(*logits.clean.shape[:2], -1)
  probabilities = jax.nn.softmax(logits_GSX)
  # When compiled, the sums do not store the routing tensors.
  return TokenRouting(
    plan.dispatch_tensor().sum(axis=3).reshape(shape_BLE),
    plan.combine_tensor().sum(axis=3).reshape(shape_BLE),
    probabilities.reshape(*logits_GSX.shape[:2], shape_BLE[2], -1)
    .sum(axis=3)
    .reshape(shape_BLE),
  )


def image_routing(tokens: TokenRouting) -> ImageRouting:
  """Sums over the tokens of each image."""
  num_experts = tokens.dispatched.shape[2]
  experts_BL = jnp.sum(tokens.dispatched > 0, axis=2)
  return ImageRouting(
    tokens.dispatched.sum(axis=1),
    tokens.combined.sum(axis=1),
    jax.nn.one_hot(experts_BL, num_experts + 1).sum(axis=1),
    jax.scipy.special.entr(tokens.probabilities).sum(axis=(1, 2)),
  )


def measure_routing(
  module: VisionTransformer,
  summarize: Callable[[TokenRouting, Float[Array, "B H W channels"]], Any],
) -> Measure:
  """Compiled measure: a summary of the routing of every layer, by name.

  Args:
    module: the model.
    summarize: takes the routing of a layer and the images; returns a tree of
      arrays with one row per image.
  """

  @jax.jit
  def measure(variables, batch):
    images = batch["image"]
    return {
      layer: summarize(token_routing(plan, logits, len(images)), images)
      for layer, (plan, logits) in capture_routing(
        module, variables, images
      ).items()
    }

  return measure


def measure_layer_routing(
  module: VisionTransformer,
) -> Callable[[Any, Array], dict[str, LayerRouting]]:
  """Compiled (variables, images) -> `LayerRouting` of every layer."""

  @jax.jit
  def measure(variables, images):
    return {
      layer: LayerRouting(
        token_routing(plan, logits, len(images)),
        plan.dispatch_tensor()[0],
        plan.combine_tensor()[0],
      )
      for layer, (plan, logits) in capture_routing(
        module, variables, images
      ).items()
    }

  return measure


def is_correct(
  module: VisionTransformer, variables: Any, batch: Batch
) -> Float[Array, "B"]:
  """1 if the class with the largest logit is a label of the image, else 0."""
  logits, _ = module.apply(variables, batch["image"])
  best = jnp.argmax(logits, axis=-1)[:, None]
  correct = jnp.take_along_axis(batch["label"], best, axis=-1)[:, 0] > 0
  return correct.astype(jnp.float32)


def measure_images(
  measures: Mapping[str, Measure],
  variables: Any,
  batches: Collection[Batch],
  to_devices: Callable[[Batch], Batch],
) -> dict[str, Any]:
  """Applies measures to all images in one pass over the data.

  Args:
    measures: measures by name.
    variables: variables of the model.
    batches: batches with `image`, `label` (B, classes) and `mask` (B,), which
      is 0 for padding.
    to_devices: places a batch on the devices.

  Returns:
    For every measure, by name, a tree of float64 arrays with one row per image
    that is not padding.
  """
  found: list = []
  for batch in track(batches, "measuring", len(batches), "batches"):
    valid = np.asarray(batch["mask"]) > 0
    placed = to_devices(batch)
    values = {
      name: measure(variables, placed) for name, measure in measures.items()
    }
    found.append(_select_rows(values, valid))
  return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _select_rows(tree: Any, rows: np.ndarray) -> Any:
  return jax.tree.map(lambda x: np.asarray(x, np.float64)[rows], tree)
