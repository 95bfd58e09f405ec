"""Parameter trees as flat maps from path ("Encoder/.../kernel") to leaf."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vmoe_study.checkpoint.errors import CheckpointError

PyTree = Any


def flatten(tree: PyTree) -> dict[str, Any]:
  """The leaves of any pytree by path, in the order of `jax.tree.leaves`."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def hollow(shape: Sequence[int], dtype: Any) -> np.ndarray:
  """An array of zeros that takes no memory, in the place of a real one."""
  return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dictionaries from a flat map of paths.

  Raises:
    CheckpointError: a path has a part that is no name ("", ".", ".."), or is
      also the parent of another path.
  """
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        break
    odd = {"", ".", ".."}.intersection((*parents, name))
    if odd or not isinstance(node, dict) or name in node:
      raise CheckpointError(
        f"parameter path {path!r} clashes with another one or has a part that "
        "is no name: paths are names joined by '/', each a leaf of one tree. "
        "Rename it in the file it comes from."
      )
    node[name] = leaf
  return tree
