"""What the shapes of parameters tell of the model that they belong to."""

import math
import re
from typing import Any

from vmoe_study.checkpoint import tree as tree_lib

PyTree = Any

_BLOCK = re.compile(r"Encoder/encoderblock_(\d+)/(Moe/)?")


def infer_model(params: PyTree) -> dict[str, Any]:
  """The `model` section of a config that has these parameters.

  Shapes do not tell how tokens are grouped, how they are chosen, nor the
  capacity: a linear router is taken for V-MoE's softmax token choice. The
  options of a router that are not told are left at their defaults.

  Raises:
    ValueError: this is not one of our vision transformers.
  """
  leaves = tree_lib.flatten(params)
  shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
  matches = [match for path in shapes if (match := _BLOCK.match(path))]
  blocks = sorted({int(match[1]) for match in matches})
  moe = sorted({int(match[1]) for match in matches if match[2]})
  required = ["embedding/kernel", "head/kernel"]
  required += [f"{_block(i)}/SelfAttention/query/kernel" for i in blocks[:1]]
  missing = [path for path in required if path not in shapes]
  if missing or not blocks or blocks != list(range(len(blocks))):
    raise ValueError(
      "these are not the parameters of a vision transformer: blocks "
      f"{blocks}, without {missing or 'gaps'}. Give a ViT or V-MoE checkpoint "
      "with its head."
    )
  model: dict[str, Any] = {"fields": _fields(shapes, len(blocks), moe)}
  if moe:
    model["moe"] = {"blocks": moe} | _router(shapes, f"{_block(moe[0])}/Moe")
  return model


def infer_image_shape(params: PyTree) -> tuple[int, int, int]:
  """Height, width and channels of square images, from learned positions.

  Raises:
    ValueError: the positions are not learned, or of no square.
  """
  leaves = tree_lib.flatten(params)
  positions = leaves.get("Encoder/posembed_input/pos_embedding")
  patch, _, channels, _ = leaves["embedding/kernel"].shape
  tokens = 0 if positions is None else positions.shape[1] - ("cls" in leaves)
  side = math.isqrt(tokens)
  if not side or side * side != tokens:
    raise ValueError(
      f"{tokens} learned positions of patches do not tell the size of square "
      "images. Only models with such positions can be imported."
    )
  return side * patch, side * patch, channels


def _block(index: int) -> str:
  return f"Encoder/encoderblock_{index}"


def _fields(
  shapes: dict[str, tuple[int, ...]], depth: int, moe: list[int]
) -> dict[str, Any]:
  """Fields of `VisionTransformer`."""
  mlp = f"{_block(0)}/{'Moe/' if 0 in moe else ''}Mlp/Dense_0/bias"
  attention = f"{_block(0)}/SelfAttention"
  pool = "token" if "cls" in shapes else "gap"
  return {
    "num_classes": shapes["head/kernel"][-1],
    "patch_size": shapes["embedding/kernel"][0],
    "width": shapes["embedding/kernel"][-1],
    "depth": depth,
    "mlp_dim": shapes[mlp][-1],
    "num_heads": shapes[f"{attention}/query/kernel"][1],
    "pool": "map" if "MapHead/probe" in shapes else pool,
    "posemb": "learned"
    if "Encoder/posembed_input/pos_embedding" in shapes
    else "sincos2d",
    "representation_size": shapes.get("pre_logits/bias", (0,))[0],
    "qk_norm": f"{attention}/query_ln/scale" in shapes,
  }


def _router(shapes: dict[str, tuple[int, ...]], moe: str) -> dict[str, Any]:
  """Name and options of a router."""
  if (slots := shapes.get(f"{moe}/Router/mu")) is not None:
    options = {"num_experts": slots[1], "slots_per_expert": slots[2]}
    return {"router": "soft", "options": options}
  options = {"num_experts": shapes[f"{moe}/Mlp/Dense_0/bias"][0]}
  return {"router": "softmax_token_choice", "options": options}
