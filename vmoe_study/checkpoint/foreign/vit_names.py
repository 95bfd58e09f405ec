"""Translates the parameters of other ViT code: names and layout.

The public ViT code (AugReg, 2106.10270) and big_vision number their modules and
call the encoder `Transformer`. In addition, big_vision

  - stores a training state: parameters under `params/` or `opt/target/`, the
    optimizer's state under `opt/` and timings under `chrono/`;
  - has models with an image tower `img/` and a text tower `txt/`: the former is
    read, without its head, which projects to the space of both;
  - may have the arrays of the MAP head at the top level;
  - adds positions before it prepends the class token, so the token has no
    position: here it gets a position of zeros;
  - may stack all encoder blocks along a leading axis (`scan`).
"""

import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.nn.parameter_names import (
  CLASS_TOKEN,
  ENCODER,
  POSITIONS,
  block_name,
)

_RENAMES = tuple(
  (re.compile(pattern), name)
  for pattern, name in (
    (r"^(params|opt/target)/", ""),
    (r"^img/", ""),
    (r"^Transformer/", "Encoder/"),
    (r"^(Encoder/)?pos_embedding$", POSITIONS),
    (r"^(Encoder/encoderblock(_\d+)?)/MlpBlock_\d+/", r"\1/Mlp/"),
    (
      r"^(Encoder/encoderblock(_\d+)?)/MultiHeadDotProductAttention_\d+/",
      r"\1/SelfAttention/",
    ),
    (r"^(Encoder/encoderblock(_\d+)?)/LayerNorm_2/", r"\1/LayerNorm_1/"),
    (
      r"^(probe$|(MultiHeadDotProductAttention|LayerNorm|MlpBlock)_\d+/)",
      r"MAPHead_0/\1",
    ),
    (r"^MAPHead_\d+/", "MapHead/"),
    (r"^MapHead/(\w+?)(?:Block)?_\d+/", r"MapHead/\1/"),
  )
)
_STATE = r"^((params|opt/target)/)?"
_PATCHES_ONLY = re.compile(rf"{_STATE}(img/)?pos_embedding$")
_NOT_PARAMETERS = re.compile(r"^(chrono/|opt/(?!target/))")
_IMAGE_TOWER = re.compile(rf"{_STATE}img/")
_REST_OF_TOWERS = re.compile(rf"{_STATE}(txt/|img/head/|[tb]$)")
_STACKED = "Encoder/encoderblock/"
_MAX_BLOCKS = 1000


def to_parameter_names(
  arrays: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
  """Translates names to our parameter paths; our own names do not change.

  Args:
    arrays: arrays by their names in a file. Arrays that are not parameters of
      the vision transformer are left out.

  Raises:
    CheckpointError: two names are translated to the same path, or there are
      too many blocks.
  """
  arrays = {
    name: array
    for name, array in arrays.items()
    if not _NOT_PARAMETERS.match(name)
  }
  if any(map(_IMAGE_TOWER.match, arrays)):
    arrays = {
      name: array
      for name, array in arrays.items()
      if not _REST_OF_TOWERS.match(name)
    }
  leaves: dict[str, np.ndarray] = {}
  for name, array in arrays.items():
    for path, leaf in _leaves(name, array):
      if path in leaves:
        raise CheckpointError(f"two arrays have the path {path}")
      leaves[path] = leaf
  if any(map(_PATCHES_ONLY.match, arrays)):
    leaves = _with_class_position(leaves)
  return leaves


def _leaves(name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
  for pattern, replacement in _RENAMES:
    name = pattern.sub(replacement, name)
  if not name.startswith(_STACKED) or not array.ndim:
    yield name, array
    return
  if len(array) > _MAX_BLOCKS:
    raise CheckpointError(
      f"{name} stacks {len(array)} blocks; {_MAX_BLOCKS} at most are read"
    )
  rest = name.removeprefix(_STACKED)
  for i, leaf in enumerate(array):
    yield f"{ENCODER}/{block_name(i)}/{rest}", leaf


def _with_class_position(
  leaves: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
  """Prepends the position of the class token, if there is one."""
  positions = leaves.get(POSITIONS)
  if positions is None or positions.ndim != 3 or CLASS_TOKEN not in leaves:
    return leaves
  length = positions.shape[1]
  if math.isqrt(length) ** 2 != length:
    return leaves
  zero = np.zeros_like(positions[:, :1])
  return leaves | {POSITIONS: np.concatenate([zero, positions], axis=1)}
