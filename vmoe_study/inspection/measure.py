"""What the routers of a trained model do with images, image by image.

A plan is the router's function of its logits (see `nn.router`), so that the
logits of a forward pass, caught as they go by, tell all of it. Layers are named
as in the parameters, "encoderblock_1".
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float

from vmoe_study.nn import parameter_names as names
from vmoe_study.nn.router import Router, RouterLogits, make_router
from vmoe_study.nn.vit import VisionTransformer, moe_blocks
from vmoe_study.routing.plan import RoutingPlan

Batch = Mapping[str, Any]
# (parameters, batch) to a tree of arrays whose rows are the images.
Measure = Callable[[Any, Batch], Any]


class TokenRouting(NamedTuple):
  """Where the tokens of a batch go, in one layer.

  Attributes:
    sent: Dispatch summed over each expert's slots: 0 or 1 for a sparse router.
    returned: Combine summed over each expert's slots.
    probabilities: the softmax of the router's logits, without noise; for
      Soft MoE over slots, summed over each expert's.
  """

  sent: Float[Array, "B L E"]
  returned: Float[Array, "B L E"]
  probabilities: Float[Array, "B L E"]


class ImageRouting(NamedTuple):
  """What one layer does with the tokens of each image.

  Attributes:
    sent: tokens sent to each expert.
    returned: sum of their combine weights.
    tokens_by_experts: tokens that 0, 1, ..., E experts process.
    entropy: of the router's probabilities, summed over tokens, in nats.
  """

  sent: Float[Array, "B E"]
  returned: Float[Array, "B E"]
  tokens_by_experts: Float[Array, "B E+1"]
  entropy: Float[Array, "B"]


class ShownRouting(NamedTuple):
  """What pictures of one layer show.

  Attributes:
    tokens: of every image.
    dispatch: of the first group.
    combine: of the first group.
  """

  tokens: TokenRouting
  dispatch: Float[Array, "S E C"]
  combine: Float[Array, "S E C"]


def layer_names(module: VisionTransformer) -> tuple[str, ...]:
  """The routed blocks, from the first to the last; none in a dense model."""
  if module.moe is None or module.moe.router == "dense":
    return ()
  blocks = moe_blocks(module.moe.blocks, module.depth)
  return tuple(map(names.block_name, blocks))


def routed(
  module: VisionTransformer, params: Any, images: Float[Array, "B H W channels"]
) -> dict[str, tuple[RoutingPlan, RouterLogits]]:
  """Plan and logits of every routed layer, as in evaluation."""
  _, variables = module.apply(
    {"params": params},
    images,
    capture_intermediates=lambda part, method: (
      isinstance(part, Router) and method == "logits"
    ),
    mutable=["intermediates"],
  )
  found = {}
  for layer in layer_names(module):
    block = variables["intermediates"][names.ENCODER][layer]
    caught = block[names.MOE][names.ROUTER]
    router = make_router(module.moe.router, **module.moe.options)
    plan, _ = router.route(caught["logits"][0])
    found[layer] = plan, caught["logits"][0]
  return found


def token_routing(
  plan: RoutingPlan, logits: RouterLogits, batch: int
) -> TokenRouting:
  """Sums over slots, with the tokens of each of the `batch` images together."""
  shape = batch, -1, plan.tokens_per_expert().shape[1]
  clean = logits.clean
  flat = jax.nn.softmax(clean.reshape(*clean.shape[:2], -1))
  # Compiled, the routing tensors are summed without being stored.
  return TokenRouting(
    plan.dispatch_tensor().sum(axis=3).reshape(shape),
    plan.combine_tensor().sum(axis=3).reshape(shape),
    flat.reshape(*clean.shape[:2], shape[2], -1).sum(axis=3).reshape(shape),
  )


def image_routing(tokens: TokenRouting) -> ImageRouting:
  """Sums over the tokens of each image."""
  num_experts = tokens.sent.shape[2]
  experts = jnp.sum(tokens.sent > 0, axis=2)
  return ImageRouting(
    tokens.sent.sum(axis=1),
    tokens.returned.sum(axis=1),
    jax.nn.one_hot(experts, num_experts + 1).sum(axis=1),
    jax.scipy.special.entr(tokens.probabilities).sum(axis=(1, 2)),
  )


def measure_routing(module: VisionTransformer) -> Measure:
  """Measures, compiled, the `ImageRouting` of every layer by name."""

  @jax.jit
  def measure(params, batch):
    images = batch["image"]
    return {
      layer: image_routing(token_routing(plan, logits, len(images)))
      for layer, (plan, logits) in routed(module, params, images).items()
    }

  return measure


def is_correct(
  module: VisionTransformer, params: Any, batch: Batch
) -> Float[Array, "B"]:
  """1 if the class with the largest logit is among an image's, else 0."""
  logits, _ = module.apply({"params": params}, batch["image"])
  best = jnp.argmax(logits, axis=-1)[:, None]
  correct = jnp.take_along_axis(batch["label"], best, axis=-1)[:, 0] > 0
  return correct.astype(jnp.float32)


def measure_shown(
  module: VisionTransformer,
) -> Callable[[Any, Array], dict[str, ShownRouting]]:
  """(parameters, images) to what is shown of every layer, compiled."""

  @jax.jit
  def measure(params, images):
    return {
      layer: ShownRouting(
        token_routing(plan, logits, len(images)),
        plan.dispatch_tensor()[0],
        plan.combine_tensor()[0],
      )
      for layer, (plan, logits) in routed(module, params, images).items()
    }

  return measure


def examine(
  measures: Mapping[str, Measure],
  params: Any,
  batches: Iterable[Batch],
  to_devices: Callable[[Batch], Batch],
) -> dict[str, Any]:
  """Measures every image once, reading the data once.

  Args:
    measures: by name.
    params: of the model.
    batches: with `image`, `label` (B, classes) and `mask` (B,), 0 for what
      does not count.
    to_devices: places a batch.

  Returns:
    By the measures' names, trees of float64 arrays with a row for every image
    that counts.
  """
  found: list = []
  count = 0
  for batch in batches:
    real = np.asarray(batch["mask"]) > 0
    placed = to_devices(batch)
    values = {
      name: measure(params, placed) for name, measure in measures.items()
    }
    found.append(_rows(values, real))
    count += int(real.sum())
    logging.info("looked at %d images", count)
  return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _rows(tree: Any, real: np.ndarray) -> Any:
  return jax.tree.map(lambda x: np.asarray(x, np.float64)[real], tree)
