"""FLOPs and active parameters of a model, computed from its sizes.

FLOPs are those of the matrix products in the model's definition, two per
multiply-add. Norms, activations, softmaxes and transport do not count, nor do
the additional FLOPs of a plan form or of rematerialisation. Experts compute on
all of their slots, full or empty.
"""

import dataclasses
from typing import Any

from flax.traverse_util import flatten_dict

from vmoe_study.nn.parameter_names import in_experts
from vmoe_study.nn.router import SoftRouter
from vmoe_study.nn.vit import VisionTransformer, moe_blocks
from vmoe_study.nn.zoo import make_router


@dataclasses.dataclass(frozen=True)
class Routing:
  """Sizes of the MoE blocks of a model.

  Attributes:
    num_blocks: number of MoE blocks.
    num_experts: E.
    slots_per_token: E * C / S, with the rounded capacity C.
    slots_per_group: E * C.
    capacity_factor: E * C / (S * K), K = 1 without token choice: the factor in
      effect, after rounding C.
    experts_per_token: mean number of experts that process a token when all
      slots are full: slots_per_token, and with token choice at most K. For Soft
      MoE, whose experts see all tokens, slots_per_token as well.
    soft: whether the router is Soft MoE, whose dispatch and combine are matrix
      products by definition.
  """

  num_blocks: int
  num_experts: int
  slots_per_token: float
  slots_per_group: int
  capacity_factor: float
  experts_per_token: float
  soft: bool

  def describe(self) -> str:
    """One line with the sizes and the actual capacity factor."""
    return (
      f"{self.num_blocks} MoE blocks of {self.num_experts} experts, "
      f"{self.slots_per_group} slots per group, "
      f"{self.slots_per_token:.4g} slots per token, actual capacity factor "
      f"{self.capacity_factor:.4g}"
    )


def tokens_per_image(
  module: VisionTransformer, image_shape: tuple[int, int, int]
) -> int:
  """L, the number of tokens of one image, including the class token."""
  height, width, _ = image_shape
  patches = (height // module.patch_size) * (width // module.patch_size)
  return patches + (module.pool == "token")


def routing(
  module: VisionTransformer, image_shape: tuple[int, int, int]
) -> Routing | None:
  """The sizes of the MoE blocks, or None for a dense model."""
  moe = module.moe
  if moe is None or not moe.is_routed:
    return None
  router = make_router(moe.router, **moe.options)
  group_size = tokens_per_image(module, image_shape) * moe.group_images
  slots = router.num_experts * router.capacity(group_size)
  if router.is_dropless:  # A row for every choice, and no empty ones.
    slots = router.choice.num_selected_experts * group_size
  per_token = slots / group_size
  soft = isinstance(router, SoftRouter)
  limit, chosen = per_token, 1
  if not soft and router.choice.tokens_choose:
    limit = chosen = router.choice.num_selected_experts
  return Routing(
    num_blocks=len(moe_blocks(moe.blocks, module.depth)),
    num_experts=router.num_experts,
    slots_per_token=per_token,
    slots_per_group=slots,
    capacity_factor=per_token / chosen,
    experts_per_token=min(per_token, limit),
    soft=soft,
  )


def forward_flops(
  module: VisionTransformer, image_shape: tuple[int, int, int]
) -> dict[str, float]:
  """FLOPs of a forward pass of one image, by part of the model."""
  length, width = tokens_per_image(module, image_shape), module.width
  patches = length - (module.pool == "token")
  pixels = module.patch_size**2 * image_shape[2]
  mlp = 4 * width * module.mlp_dim
  attention = 8 * length * width**2 + 4 * length**2 * width
  features = module.representation_size or width
  parts = {
    "patches": 2.0 * patches * pixels * width,
    "attention": module.depth * attention,
    "mlp": module.depth * length * mlp,
    "head": 2 * features * module.num_classes,
  }
  if module.representation_size:
    parts["head"] += 2 * width * features
  if module.pool == "map":
    parts["head"] += (4 + 4 * length) * width**2 + 4 * length * width + mlp
  if moe := routing(module, image_shape):
    tokens = moe.num_blocks * length
    parts["mlp"] -= tokens * mlp
    parts["experts"] = tokens * moe.slots_per_token * mlp
    # Soft: slot logits, dispatch and combine, each a product with all slots.
    columns = 3 * moe.slots_per_group if moe.soft else moe.num_experts
    parts["router"] = 2 * tokens * width * columns
  return parts


def dense_mlp_dim(
  module: VisionTransformer, image_shape: tuple[int, int, int]
) -> int:
  """The hidden size at which a dense model has the FLOPs of a routed one.

  Rounded to the nearest integer. With `router` "dense", this `mlp_dim` makes
  the control with equal FLOPs of the forward pass.
  """
  dense = module.clone(moe=None)
  missing = sum(forward_flops(module, image_shape).values())
  missing -= sum(forward_flops(dense, image_shape).values())
  tokens = module.depth * tokens_per_image(module, image_shape)
  tokens += module.pool == "map"  # Its head has an MLP, too.
  return module.mlp_dim + round(missing / (4 * module.width * tokens))


def training_flops(
  module: VisionTransformer, image_shape: tuple[int, int, int]
) -> float:
  """FLOPs of a forward and backward pass of one image.

  The gradient of a matrix product costs two products of the same size, one for
  each factor. The patch embedding needs only one, because images need no
  gradient.
  """
  parts = forward_flops(module, image_shape)
  return 3 * sum(parts.values()) - parts["patches"]


def parameter_counts(params: Any, moe: Routing | None) -> tuple[int, int]:
  """The number of all parameters, and of those that are active for a token.

  Active are all parameters except those of experts that do not process the
  token: of the E experts of a block, `experts_per_token` count.

  Args:
    params: nested dictionaries of arrays or shapes.
    moe: sizes of the model's MoE blocks, or None for a dense model.
  """
  leaves = flatten_dict(params, sep="/")
  total = sum(leaf.size for leaf in leaves.values())
  if moe is None:
    return total, total
  experts = sum(leaf.size for path, leaf in leaves.items() if in_experts(path))
  active_experts = experts * moe.experts_per_token / moe.num_experts
  return total, total - experts + round(active_experts)
