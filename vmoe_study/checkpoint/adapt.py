"""Starting a model from the parameters of another one.

Source and target are trees with the names of our models. Steps compose: resize
the positions, upcycle the dense MLPs, then take what matches.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import scipy.ndimage
from jaxtyping import Float

from vmoe_study.checkpoint import tree as tree_lib

PyTree = Any

_POSITIONS = "Encoder/posembed_input/pos_embedding"


@dataclasses.dataclass(frozen=True)
class MatchReport:
  """What became of every leaf, by path.

  Attributes:
    used: taken from the source.
    unused: in the source, not in the model.
    missing: in the model, not in the source; keep their initial values.
    mismatched: in both, with (source, model) shapes that differ; keep their
      initial values.
  """

  used: tuple[str, ...]
  unused: tuple[str, ...]
  missing: tuple[str, ...]
  mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

  @property
  def complete(self) -> bool:
    """Whether source and model agree leaf by leaf."""
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
  """What `match_params` would do with every leaf, by name and shape alone."""
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
  """Fills a model's parameters from a source, where path and shape agree.

  Args:
    source: nested dictionaries of arrays.
    template: the model's initial parameters; their dtypes and shardings hold.

  Returns:
    A tree like the template, and what was used.
  """
  given, wanted = tree_lib.flatten(source), tree_lib.flatten(template)
  report = compare(source, template)
  filled = wanted | {
    path: _like(given[path], wanted[path]) for path in report.used
  }
  structure = jax.tree.structure(template)
  return jax.tree.unflatten(
    structure, [filled[path] for path in wanted]
  ), report


def upcycle(dense: PyTree, template: PyTree) -> PyTree:
  """Every expert starts from the dense MLP in its place (2212.05055).

  Args:
    dense: parameters of a dense model.
    template: initial parameters of a model with MoE blocks, at the same paths
      otherwise; its routers are taken.

  Returns:
    The dense tree with each `Mlp` of a MoE block replaced by `Moe`.

  Raises:
    ValueError: a MoE block has no dense MLP to start from.
  """
  leaves = tree_lib.flatten(dense)
  upcycled = dict(leaves)
  for path, leaf in tree_lib.flatten(template).items():
    if "/Moe/" not in path:
      continue
    if "/Moe/Router/" in path:
      upcycled[path] = leaf
      continue
    origin = path.replace("/Moe/", "/")
    if origin not in leaves or leaves[origin].shape != leaf.shape[1:]:
      raise ValueError(
        f"{path} of shape {leaf.shape} cannot start from {origin}: every "
        f"expert needs a dense MLP of shape {leaf.shape[1:]}. Choose a dense "
        "model of the same sizes."
      )
    upcycled[path] = np.broadcast_to(leaves[origin], leaf.shape)
    upcycled.pop(origin, None)
  return tree_lib.unflatten(upcycled)


def resize_positions(source: PyTree, template: PyTree) -> PyTree:
  """Fits learned position embeddings to the model's number of tokens.

  The square grid is interpolated linearly, corners on corners; the position of
  a class token stays as it is. Trees without learned positions, or of the same
  length, come back unchanged.

  Raises:
    ValueError: a grid is not square, or just one side has a class token.
  """
  given, wanted = tree_lib.flatten(source), tree_lib.flatten(template)
  if _POSITIONS not in given or _POSITIONS not in wanted:
    return source
  positions, length = np.asarray(given[_POSITIONS]), wanted[_POSITIONS].shape[1]
  if positions.shape[1] == length:
    return source
  return tree_lib.unflatten(given | {_POSITIONS: _resize(positions, length)})


def _resize(
  positions: Float[np.ndarray, "1 L D"], length: int
) -> Float[np.ndarray, "1 M D"]:
  old, new = _grid(positions.shape[1]), _grid(length)
  if old[1] != new[1]:
    raise ValueError(
      f"{_POSITIONS}: {positions.shape[1]} positions cannot become {length}: "
      "only one of the two has a class token. Choose the same pool for both."
    )
  side, token = old
  grid = positions[0, token:].reshape(side, side, -1)
  scale = new[0] / side
  grid = scipy.ndimage.zoom(grid, (scale, scale, 1), order=1)
  grid = grid.reshape(1, -1, grid.shape[-1]).astype(positions.dtype)
  return np.concatenate([positions[:, :token], grid], axis=1)


def _grid(length: int) -> tuple[int, int]:
  """Side of the square grid, and the number of class tokens before it."""
  for token in (0, 1):
    side = math.isqrt(length - token)
    if side and side * side == length - token:
      return side, token
  raise ValueError(
    f"{_POSITIONS}: {length} positions are no square grid with or without a "
    "class token. Only square images can be resized."
  )


def _like(values: Any, leaf: Any) -> Any:
  """The values with dtype and place of a leaf of the model."""
  values = np.asarray(values).astype(leaf.dtype)
  if isinstance(leaf, jax.Array):
    return jax.device_put(values, leaf.sharding)
  return values
