"""Infers the config of a model from the shapes of its parameters."""

import math
import re
from typing import Any

from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.nn import parameter_names as names

PyTree = Any


def infer_model(params: PyTree) -> dict[str, Any]:
  """The config section `model` for a model with these parameters.

  Shapes do not determine the routing groups, the capacity, or the kind of a
  router with a linear projection. V-MoE's softmax token choice is assumed, and
  undetermined options keep their defaults.

  Raises:
    ValueError: these are not the parameters of a `VisionTransformer`.
  """
  shapes = _shapes(params)
  matches = [re.search(names.BLOCK_PATTERN, path) for path in shapes]
  found = [match for match in matches if match]
  blocks = sorted({int(match[1]) for match in found})
  moe = sorted({int(match[1]) for match in found if names.in_moe(match.string)})
  if not blocks or blocks != list(range(len(blocks))):
    raise _not_a_vit(f"its blocks are {blocks}")
  model: dict[str, Any] = {"fields": _fields(shapes, len(blocks), moe)}
  if moe:
    router = _router(shapes, f"{_block(moe[0])}/{names.MOE}")
    model["moe"] = {"blocks": moe} | router
  return model


def infer_image_shape(params: PyTree) -> tuple[int, int, int] | None:
  """Height, width and channels of square images, from learned positions.

  Returns:
    None if positions are not learned, because then shapes do not determine it.

  Raises:
    ValueError: the number of positions is not a square.
  """
  shapes = _shapes(params)
  patch, _, channels, _ = _shape(shapes, f"{names.EMBEDDING}/kernel", 4)
  if names.POSITIONS not in shapes:
    return None
  tokens = _shape(shapes, names.POSITIONS, 3)[1] - (names.CLASS_TOKEN in shapes)
  side = math.isqrt(max(tokens, 0))
  if not side or side * side != tokens:
    raise ValueError(
      f"{names.POSITIONS}: {tokens} positions of patches, which is not a "
      "square. Only models of square images can be imported."
    )
  return side * patch, side * patch, channels


def _shapes(params: PyTree) -> dict[str, tuple[int, ...]]:
  leaves = tree_lib.flatten(params)
  return {path: tuple(leaf.shape) for path, leaf in leaves.items()}


def _shape(
  shapes: dict[str, tuple[int, ...]], path: str, rank: int
) -> tuple[int, ...]:
  """The shape of a required parameter with this number of axes."""
  if len(shape := shapes.get(path, ())) != rank:
    found = f"has the shape {shape}" if path in shapes else "is missing"
    raise _not_a_vit(f"{path}, with {rank} axes, {found}")
  return shape


def _not_a_vit(problem: str) -> ValueError:
  return ValueError(
    f"not the parameters of a vision transformer: {problem}. Give a ViT or "
    "V-MoE checkpoint with its head."
  )


def _block(index: int) -> str:
  return f"{names.ENCODER}/{names.block_name(index)}"


def _fields(
  shapes: dict[str, tuple[int, ...]], depth: int, moe: list[int]
) -> dict[str, Any]:
  """Fields of `VisionTransformer`."""
  mlp, rank = (names.EXPERTS, 2) if 0 in moe else (names.MLP, 1)
  hidden = f"{_block(0)}/{mlp}/{names.MLP_INPUT}/bias"
  attention = f"{_block(0)}/{names.ATTENTION}"
  pre_logits = f"{names.PRE_LOGITS}/bias"
  pool = "token" if names.CLASS_TOKEN in shapes else "gap"
  patch_size, _, _, width = _shape(shapes, f"{names.EMBEDDING}/kernel", 4)
  return {
    "num_classes": _shape(shapes, f"{names.HEAD}/kernel", 2)[1],
    "patch_size": patch_size,
    "width": width,
    "depth": depth,
    "mlp_dim": _shape(shapes, hidden, rank)[-1],
    "num_heads": _shape(shapes, f"{attention}/query/kernel", 3)[1],
    "pool": "map" if f"{names.MAP_HEAD}/probe" in shapes else pool,
    "posemb": "learned" if names.POSITIONS in shapes else "sincos2d",
    "representation_size": _shape(shapes, pre_logits, 1)[0]
    if pre_logits in shapes
    else 0,
    "qk_norm": f"{attention}/query_ln/scale" in shapes,
  }


def _router(shapes: dict[str, tuple[int, ...]], moe: str) -> dict[str, Any]:
  """Name and options of a router."""
  slot_embedding = f"{moe}/{names.ROUTER}/{names.SLOT_EMBEDDING}"
  if slot_embedding in shapes:
    _, experts, slots = _shape(shapes, slot_embedding, 3)
    options = {"num_experts": experts, "slots_per_expert": slots}
    return {"router": "soft", "options": options}
  experts, _ = _shape(shapes, f"{moe}/{names.MLP}/{names.MLP_INPUT}/bias", 2)
  options = {"num_experts": experts}
  return {"router": "softmax_token_choice", "options": options}
