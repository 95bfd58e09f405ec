"""Parameter trees as flat maps from path ("Encoder/.../kernel") to leaf."""

from collections.abc import Mapping
from typing import Any

import jax

from vmoe_study.checkpoint.errors import CheckpointError

PyTree = Any


def flatten(tree: PyTree) -> dict[str, Any]:
  """The leaves of any pytree by path, in the order of `jax.tree.leaves`."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf
    for path, leaf in leaves
  }


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dictionaries from a flat map of paths.

  Raises:
    CheckpointError: a path is empty, has an empty part, or is also the parent
      of another path.
  """
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, name = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        break
    if not isinstance(node, dict) or name in node or "" in (*parents, name):
      raise CheckpointError(
        f"parameter path {path!r} is empty, has an empty part, or clashes "
        "with another path: paths are names joined by '/', each a leaf of "
        "one tree. Rename it in the file it comes from."
      )
    node[name] = leaf
  return tree
