"""Trees of arrays as flat dictionaries from path ("head/kernel") to leaf."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.parallel.sharding import path_name

PyTree = Any

_MAX_DEPTH = 64  # Of a parameter path; deeper trees overflow the stack.


def flatten(tree: PyTree) -> dict[str, Any]:
  """The leaves of a pytree by path, in the order of `jax.tree.leaves`."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {path_name(path): leaf for path, leaf in leaves}


def zeros_without_memory(shape: Sequence[int], dtype: Any) -> np.ndarray:
  """A placeholder array of zeros that takes no memory."""
  return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dictionaries from leaves by path.

  Raises:
    CheckpointError: a path has an invalid part ("", ".", "..") or too many, or
      is also the parent of another path.
  """
  tree: dict[str, Any] = {}
  for path, leaf in leaves.items():
    *parents, name = path.split("/")
    if len(parents) >= _MAX_DEPTH:
      raise CheckpointError(
        f"parameter path {path[:40]!r}...: it has {len(parents) + 1} parts, "
        f"but {_MAX_DEPTH} at most are read. Rename the parameter in the file "
        "that it comes from."
      )
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        break
    invalid = {"", ".", ".."}.intersection((*parents, name))
    if invalid or not isinstance(node, dict) or name in node:
      raise CheckpointError(
        f"parameter path {path!r}: must be names joined by '/', none of them "
        "'', '.' or '..', and not the parent of another path. Rename the "
        "parameter in the file that it comes from."
      )
    node[name] = leaf
  return tree
