"""The manifest of a checkpoint: metadata, arrays, fingerprints.

The manifest is a JSON item next to the arrays. It contains fingerprints of all
arrays, because the array storage silently returns changed bytes and casts
dtypes, and a digest of itself, which detects changed bytes in the manifest.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.fingerprint import fingerprint
from vmoe_study.files.json_text import MALFORMED

_FORMAT = 1
_SHOWN = 8


def build(items: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict:
  """Makes the manifest of trees of arrays by item name, with its digest.

  All processes of a multi-host run call it and get the same manifest.
  """
  manifest = {
    "format": _FORMAT,
    # Format 1 calls the metadata "config".
    "config": json.loads(json.dumps(metadata)),
    "items": {name: describe(tree) for name, tree in items.items()},
  }
  return manifest | {"digest": _digest(manifest)}


def describe(tree: Any) -> dict[str, dict[str, Any]]:
  """Shape, dtype and fingerprint of every leaf, by path."""
  # One at a time: JAX's CPU collectives deadlock with over 31 queued programs.
  return {
    name: {
      "shape": list(leaf.shape),
      "dtype": str(leaf.dtype),
      "fingerprint": fingerprint(leaf),
    }
    for name, leaf in tree_lib.flatten(tree).items()
  }


def check(manifest: Any) -> None:
  """Raises CheckpointError if the manifest is damaged or of another format."""
  if not isinstance(manifest, dict) or "digest" not in manifest:
    raise CheckpointError("its manifest is not one that this package writes")
  content = {key: value for key, value in manifest.items() if key != "digest"}
  if manifest["digest"] != _digest(content):
    raise CheckpointError("its manifest does not match its own digest")
  if content.get("format") != _FORMAT:
    raise CheckpointError(
      f"its format is {content.get('format')}, this version reads {_FORMAT}"
    )
  try:
    leaves = [
      leaf for item in content["items"].values() for leaf in item.items()
    ]
    if not all(_is_array(name, leaf) for name, leaf in leaves):
      raise ValueError("a shape, a dtype or a fingerprint is invalid")
  except MALFORMED as error:
    raise CheckpointError("its manifest does not describe arrays") from error


def _is_array(name: str, leaf: Mapping[str, Any]) -> bool:
  """Whether a leaf describes an array; may raise `MALFORMED`."""
  sizes = all(type(size) is int and size >= 0 for size in leaf["shape"])
  jnp.dtype(leaf["dtype"])
  return bool(name) and sizes and isinstance(leaf["fingerprint"], str)


def check_template(
  item: str, saved: Mapping[str, dict], template: Any, where: str
) -> None:
  """Checks that an item of a checkpoint has the leaves of a template.

  Raises:
    ValueError: lists the leaves that are missing, not expected, or of another
      shape or dtype.
  """
  wanted = tree_lib.flatten(template)
  problems = [
    f"{name}: expected, not in the checkpoint"
    for name in wanted.keys() - saved.keys()
  ] + [
    f"{name}: in the checkpoint, not expected"
    for name in saved.keys() - wanted.keys()
  ]
  for name in wanted.keys() & saved.keys():
    have = f"{saved[name]['dtype']}{saved[name]['shape']}"
    want = f"{wanted[name].dtype}{list(wanted[name].shape)}"
    if have != want:
      problems.append(f"{name}: {have} in the checkpoint, {want} expected")
  if problems:
    shown = "\n  ".join(sorted(problems)[:_SHOWN])
    raise ValueError(
      f"{item} of {where} differs from this model in {len(problems)} arrays:\n"
      f"  {shown}\nNames, shapes and dtypes must agree: use the config that "
      "the checkpoint was made with, or another directory."
    )


def check_arrays(item: str, saved: Mapping[str, dict], tree: Any) -> None:
  """Raises CheckpointError if a restored array differs from the saved one."""
  found = describe(tree)
  damaged = sorted(name for name in saved if found.get(name) != saved[name])
  if damaged:
    raise CheckpointError(
      f"{len(damaged)} arrays of {item} are not what was saved, the first is "
      f"{damaged[0]}"
    )


def _digest(content: Mapping[str, Any]) -> str:
  text = json.dumps(content, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()
