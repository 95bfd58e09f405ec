"""FLOPs and active parameters of a model, by arithmetic.

FLOPs are those of the matrix products that the definition of the model asks
for, two per multiply-add: not norms, activations, softmaxes or transport; not
what a form of plan or rematerialisation adds. Experts compute on all of their
slots, whether full or empty.
"""

import dataclasses
from typing import Any

import jax

from vmoe_study.nn.router import SoftRouter, make_router
from vmoe_study.nn.vit import VisionTransformer, moe_blocks
from vmoe_study.parallel.sharding import EXPERT_PATH, path_name


@dataclasses.dataclass(frozen=True)
class Routing:
  """Sizes of the MoE blocks of a model.

  Attributes:
    num_blocks: that are MoE.
    num_experts: E.
    slots_per_token: E * C / S, with capacity C as rounded and S tokens per
      group.
    slots_per_group: E * C.
    experts_per_token: how many experts a token passes, on average and if all
      slots are full: slots_per_token, but under token choice K at most.
    soft: whether dispatch and combine are matrix products by definition.
  """

  num_blocks: int
  num_experts: int
  slots_per_token: float
  slots_per_group: int
  experts_per_token: float
  soft: bool

  def describe(self) -> str:
    """One line that shows what rounding made of the capacity factor."""
    return (
      f"{self.num_blocks} MoE blocks of {self.num_experts} experts, "
      f"{self.slots_per_group} slots per group, "
      f"{self.slots_per_token:.4g} slots per token"
    )


def tokens_per_image(
  module: VisionTransformer, image_shape: tuple[int, int, int]
) -> int:
  """L, class token included."""
  height, width, _ = image_shape
  patches = (height // module.patch_size) * (width // module.patch_size)
  return patches + (module.pool == "token")


def routing(
  module: VisionTransformer, image_shape: tuple[int, int, int]
) -> Routing | None:
  """The sizes of the MoE blocks; None if there are none."""
  moe = module.moe
  if moe is None or moe.router == "dense":
    return None
  router = make_router(moe.router, **moe.options)
  group_size = tokens_per_image(module, image_shape) * moe.group_images
  slots = router.num_experts * router.capacity(group_size)
  per_token = slots / group_size
  soft = isinstance(router, SoftRouter)
  most = per_token
  if not soft and router.choice.tokens_choose:
    most = router.choice.num_selected_experts
  return Routing(
    num_blocks=len(moe_blocks(moe.blocks, module.depth)),
    num_experts=router.num_experts,
    slots_per_token=per_token,
    slots_per_group=slots,
    experts_per_token=min(per_token, most),
    soft=soft,
  )


def forward_flops(
  module: VisionTransformer, image_shape: tuple[int, int, int]
) -> dict[str, float]:
  """FLOPs of one image, by part of the model."""
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


def training_flops(
  module: VisionTransformer, image_shape: tuple[int, int, int]
) -> float:
  """FLOPs of one image forward and backward.

  Each product has two gradients as expensive as itself, but for the patches:
  no gradient in the image is asked for.
  """
  parts = forward_flops(module, image_shape)
  return 3 * sum(parts.values()) - parts["patches"]


def parameter_counts(params: Any, moe: Routing | None) -> tuple[int, int]:
  """Parameters in all, and those that one token meets.

  A token meets everything but the experts that it does not pass: of E experts
  in a block, `experts_per_token` count.

  Args:
    params: the tree of parameters or their shapes.
    moe: sizes of the MoE blocks of their model.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  experts = sum(p.size for n, p in leaves if EXPERT_PATH.search(path_name(n)))
  total = sum(p.size for _, p in leaves)
  if moe is None:
    return total, total
  met = experts * moe.experts_per_token / moe.num_experts
  return total, total - experts + round(met)
