"""Adapts the parameters of one model to another.

Source and template are trees with our parameter names. The steps compose:
resize the position embeddings, turn dense MLPs into experts, then copy what has
the same path and shape.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import scipy  # `scipy.ndimage` is loaded at its first use.
from jaxtyping import Float

from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.nn.parameter_names import (
  POSITIONS,
  dense_path,
  in_moe,
  in_router,
)

PyTree = Any
Grid = tuple[int, int]
"""Rows and columns of patches."""


@dataclasses.dataclass(frozen=True)
class MatchReport:
  """How the parameters of a source match those of a model, by path.

  Attributes:
    used: paths copied from the source.
    unused: paths in the source only.
    missing: paths in the model only; these keep their initial values.
    mismatched: paths in both, with their different (source, model) shapes;
      these keep their initial values.
  """

  used: tuple[str, ...]
  unused: tuple[str, ...]
  missing: tuple[str, ...]
  mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

  @property
  def complete(self) -> bool:
    """Whether source and model have the same paths and shapes."""
    return not (self.unused or self.missing or self.mismatched)

  def __str__(self) -> str:
    shapes = [
      f"{path} (shape {source}, the model has {model})"
      for path, (source, model) in self.mismatched.items()
    ]
    lines = [f"{len(self.used)} arrays used"]
    for label, names in (
      ("not used", self.unused),
      ("missing", self.missing),
      ("of another shape", shapes),
    ):
      if names:
        lines.append(f"{len(names)} {label}: {', '.join(names)}")
    return "\n".join(lines)


def compare(source: PyTree, template: PyTree) -> MatchReport:
  """Makes the report of `match_params` from paths and shapes alone."""
  given, wanted = tree_lib.flatten(source), tree_lib.flatten(template)
  shared = [path for path in wanted if path in given]
  used = [path for path in shared if given[path].shape == wanted[path].shape]
  return MatchReport(
    used=tuple(used),
    unused=tuple(path for path in given if path not in wanted),
    missing=tuple(path for path in wanted if path not in given),
    mismatched={
      path: (tuple(given[path].shape), tuple(wanted[path].shape))
      for path in shared
      if path not in used
    },
  )


def match_params(
  source: PyTree, template: PyTree
) -> tuple[PyTree, MatchReport]:
  """Copies the source's parameters where path and shape agree.

  Args:
    source: nested dictionaries of arrays.
    template: the model's initial parameters, which determine dtypes and
      shardings.

  Returns:
    A tree like the template, and a report of what was copied.
  """
  given, wanted = tree_lib.flatten(source), tree_lib.flatten(template)
  report = compare(source, template)
  filled = wanted | {
    path: _convert_like(given[path], wanted[path]) for path in report.used
  }
  structure = jax.tree.structure(template)
  return jax.tree.unflatten(
    structure, [filled[path] for path in wanted]
  ), report


def upcycle(dense: PyTree, template: PyTree) -> PyTree:
  """Sparse upcycling (2212.05055): each expert is a copy of the dense MLP.

  Args:
    dense: parameters of a dense model.
    template: initial parameters of a model with routed blocks that otherwise
      has the same paths. Its routers are copied.

  Returns:
    The dense tree with `Moe` in place of the `Mlp` of each routed block.

  Raises:
    ValueError: a routed block has no dense MLP of the same size to start from.
  """
  leaves = tree_lib.flatten(dense)
  upcycled = dict(leaves)
  for path, leaf in tree_lib.flatten(template).items():
    if not in_moe(path):
      continue
    if in_router(path):
      upcycled[path] = leaf
      continue
    origin = dense_path(path)
    if origin not in leaves or leaves[origin].shape != leaf.shape[1:]:
      raise ValueError(
        f"{path} of shape {leaf.shape} cannot start from {origin}: every "
        f"expert needs a dense MLP of shape {leaf.shape[1:]}. Choose a dense "
        "model of the same sizes."
      )
    upcycled[path] = np.broadcast_to(leaves[origin], leaf.shape)
    upcycled.pop(origin, None)
  return tree_lib.unflatten(upcycled)


def resize_positions(
  source: PyTree,
  template: PyTree,
  source_grid: Grid | None = None,
  grid: Grid | None = None,
) -> PyTree:
  """Resizes learned position embeddings to the model's grid of patches.

  The grid is interpolated linearly with its corners aligned. The position of a
  class token is kept. The source is returned unchanged if either tree has no
  learned positions, or both have the same grid.

  Args:
    source: parameters.
    template: parameters of the model, or their shapes.
    source_grid: rows and columns of patches; None for a square.
    grid: rows and columns of the model's patches; None for a square.

  Raises:
    ValueError: the number of patches in a grid is not that of the positions, or
      only one tree has a class token.
  """
  given, wanted = tree_lib.flatten(source), tree_lib.flatten(template)
  if POSITIONS not in given or POSITIONS not in wanted:
    return source
  positions, length = given[POSITIONS], wanted[POSITIONS].shape[1]
  source_grid, token = _grid("source", positions.shape[1], source_grid)
  grid, new_token = _grid("model", length, grid)
  if token != new_token:
    raise ValueError(
      f"{POSITIONS}: {positions.shape[1]} positions cannot become {length}: "
      "only one of the two has a class token. Choose the same pool for both."
    )
  if source_grid == grid:
    return source
  resized = _resize(np.asarray(positions), token, source_grid, grid)
  return tree_lib.unflatten(given | {POSITIONS: resized})


def _resize(
  positions: Float[np.ndarray, "1 L D"], token: int, old: Grid, new: Grid
) -> Float[np.ndarray, "1 M D"]:
  values = positions[0, token:].reshape(*old, -1)
  scale = (new[0] / old[0], new[1] / old[1], 1)
  values = scipy.ndimage.zoom(values, scale, order=1)
  values = values.reshape(1, -1, values.shape[-1]).astype(positions.dtype)
  return np.concatenate([positions[:, :token], values], axis=1)


def _grid(whose: str, length: int, grid: Grid | None) -> tuple[Grid, int]:
  """The grid, by default a square, and the number of class tokens before it."""
  for token in (0, 1):
    side = math.isqrt(max(length - token, 0))
    rows, columns = grid or (side, side)
    if rows and rows * columns == length - token:
      return (rows, columns), token
  if grid:
    raise ValueError(
      f"{POSITIONS}: the {whose} has {length} positions, but {grid[0]} x "
      f"{grid[1]} patches. Give the parameters of a model of these images."
    )
  raise ValueError(
    f"{POSITIONS}: the {length} positions of the {whose} do not form a square, "
    "and its file does not store their rows and columns. Start from a "
    "workdir of this package (initialize.kind='checkpoint'), which stores "
    "them, or from a model of square images."
  )


def _convert_like(values: Any, leaf: Any) -> Any:
  """The values with the dtype and sharding of a leaf of the model."""
  values = np.asarray(values).astype(leaf.dtype)
  if isinstance(leaf, jax.Array):
    return jax.device_put(values, leaf.sharding)
  return values
