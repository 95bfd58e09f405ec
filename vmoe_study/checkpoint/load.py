"""Reads and verifies checkpoints: whole steps, parameters only, metadata.

Steps are read with Orbax's handlers instead of its manager. The handlers do not
wait for other hosts, so a failure on one host can be raised on all of them.

An exported model (`exported.py`) is read like a directory with a single step.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from vmoe_study.checkpoint import exported
from vmoe_study.checkpoint import manifest as manifest_lib
from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.checkpoint.errors import CheckpointError, one_line
from vmoe_study.parallel import hosts

PyTree = Any
T = TypeVar("T")

AS_NUMPY = object()  # As a template: read to host memory.
# As an item: the weights for evaluation, which are the moving average of the
# parameters or, if the run keeps none, the parameters.
WEIGHTS = "weights"
EMA = "ema"


def load_params(
  directory: epath.PathLike,
  step: int | None = None,
  template: PyTree | None = None,
) -> tuple[PyTree, dict[str, Any], int]:
  """Reads the weights for evaluation, without the optimizer state.

  Args:
    directory: directory of a `CheckpointStore`; it is not changed.
    step: the step to read; None for the newest intact one.
    template: see `CheckpointStore.restore`; None for nested dictionaries of
      numpy arrays, which do not need the devices that saved the checkpoint.

  Returns:
    The parameters or, if the run keeps one, their moving average; metadata;
    step.

  Raises:
    ValueError: names, shapes or dtypes differ from the template's.
    CheckpointError: there is no checkpoint, or none that is intact.
  """
  directory = absolute(directory)
  template = AS_NUMPY if template is None else template
  found, trees, metadata = restore_trees(directory, step, {WEIGHTS: template})
  return trees[WEIGHTS], metadata, found


def load_shapes(
  directory: epath.PathLike, item: str = "params"
) -> tuple[PyTree, int]:
  """Shapes and dtypes of one item of the newest checkpoint, and its step.

  Reads only the manifest; leaves are zeros that take no memory.

  Raises:
    CheckpointError: there is no checkpoint, or its manifest is damaged.
  """
  step, manifest = _read_intact(absolute(directory), None, read_manifest)
  saved = manifest["items"].get(item, {})
  leaves = {
    path: tree_lib.zeros_without_memory(leaf["shape"], jnp.dtype(leaf["dtype"]))
    for path, leaf in saved.items()
  }
  return tree_lib.unflatten(leaves), step


def load_metadata(
  directory: epath.PathLike, step: int | None = None
) -> tuple[dict[str, Any], int]:
  """The metadata of a step, by default the newest with an intact manifest.

  Returns:
    Metadata, step.

  Raises:
    CheckpointError: there is no checkpoint, or none with an intact manifest.
  """
  found, _, metadata = restore_trees(absolute(directory), step, {})
  return metadata, found


def restore_trees(
  directory: epath.Path, step: int | None, templates: dict[str, PyTree]
) -> tuple[int, dict[str, PyTree], dict[str, Any]]:
  """Reads a step, by default the newest intact one; logs the damaged ones.

  Args:
    directory: directory of a `CheckpointStore`.
    step: the step to read, or None.
    templates: a template for each item or for `WEIGHTS`: a tree as in
      `CheckpointStore.restore`, or `AS_NUMPY`.

  Returns:
    Step, one tree for every template, metadata.

  Raises:
    ValueError: names, shapes or dtypes differ from a template's.
    CheckpointError: there is no checkpoint, or none that is intact.
  """

  def read(path: epath.Path) -> tuple[dict[str, PyTree], dict[str, Any]]:
    manifest = read_manifest(path)
    trees = {
      item: _read_item(path, item, manifest["items"], template)
      for item, template in templates.items()
    }
    return trees, manifest["config"]

  found, (trees, metadata) = _read_intact(directory, step, read)
  return found, trees, metadata


def _read_intact(
  directory: epath.Path, step: int | None, read: Callable[[epath.Path], T]
) -> tuple[int, T]:
  """Applies `read` to a step, by default to the newest that it can read.

  A run in training may remove a step while it is read; it has then saved a
  newer one.
  """
  steps = complete_steps(directory)
  if not steps or (step is not None and step not in steps):
    raise CheckpointError(_missing_step_error(directory, step, steps))
  tried: list[int] = []
  while left := [s for s in steps if s not in tried and step in (None, s)]:
    path = _step_folder(directory, left[-1])
    try:
      return left[-1], read(path)
    except CheckpointError as error:
      if path.exists():
        logging.warning("Checkpoint %s is damaged: %s.", path, error)
    tried.append(left[-1])
    steps = complete_steps(directory)
  raise CheckpointError(
    f"{directory} holds no intact checkpoint: steps {sorted(tried)} cannot "
    "be read; the reasons are logged above. Restore the files from a copy, or "
    "start from scratch in another directory."
  )


def _step_folder(directory: epath.Path, step: int) -> epath.Path:
  is_exported = exported.is_exported(directory)
  return directory if is_exported else directory / str(step)


def _missing_step_error(
  directory: epath.Path, step: int | None, steps: list[int]
) -> str:
  wanted = "checkpoint" if step is None else f"step {step}"
  if steps:
    return (
      f"{directory} holds no {wanted}; its complete steps are {steps}. Give "
      "one of these."
    )
  there = directory.exists()
  reason = "none is complete" if there else "there is no such folder"
  return (
    f"{directory} holds no {wanted}: {reason}. Give the folder of a run that "
    "has saved a checkpoint."
  )


def read_manifest(path: epath.Path) -> dict[str, Any]:
  """The manifest of one step, with its digest verified.

  Raises:
    CheckpointError: it is missing or damaged.
  """
  with _readable():
    if exported.is_exported(path):
      return exported.read_manifest(path)
    handler = ocp.JsonCheckpointHandler()
    manifest = handler.restore(path / "manifest", args=ocp.args.JsonRestore())
    manifest_lib.check(manifest)
  return manifest


def _read_item(
  path: epath.Path, item: str, items: dict[str, dict], template: PyTree
) -> PyTree:
  """Reads and verifies one item; `items` are those of the manifest."""
  if item == WEIGHTS:
    item = EMA if EMA in items else "params"
  saved = items.get(item, {})
  if template is not AS_NUMPY:
    manifest_lib.check_template(item, saved, template, str(path))
    if not jax.tree.leaves(template):
      return template
  with _readable():
    if exported.is_exported(path):
      tree = exported.read_item(path, item)
      if template is not AS_NUMPY:
        tree = jax.tree.map(_place, tree, template)
    elif template is AS_NUMPY:
      tree = _read_numpy(path / item, saved)
    else:
      tree = ocp.StandardCheckpointHandler().restore(
        path / item,
        args=ocp.args.StandardRestore(jax.tree.map(_abstract, template)),
      )
  with _readable():
    manifest_lib.check_arrays(item, saved, tree)
  return tree


def _read_numpy(path: epath.Path, saved: dict[str, dict]) -> PyTree:
  restore_args = {name: ocp.RestoreArgs(np.ndarray) for name in saved}
  tree = ocp.PyTreeCheckpointHandler().restore(
    path,
    args=ocp.args.PyTreeRestore(restore_args=tree_lib.unflatten(restore_args)),
  )
  return jax.tree.map(np.asarray, tree)


def _place(array: np.ndarray, leaf: Any) -> jax.Array:
  """The array with the sharding of a template's leaf."""
  sharding = _abstract(leaf).sharding
  return jax.make_array_from_callback(
    array.shape, sharding, lambda index: array[index]
  )


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
  """Re-raises any read error as CheckpointError on all hosts."""
  try:
    with hosts.raise_on_all_hosts():
      yield
  except Exception as error:
    raise CheckpointError(f"it cannot be read: {one_line(error)}") from error


def complete_steps(directory: epath.Path) -> list[int]:
  """The complete steps in ascending order, as the first host sees them.

  Raises:
    CheckpointError: the model is exported, and its config damaged.
  """
  if exported.is_exported(directory):
    with _readable():
      return [exported.read_step(directory)]
  steps = ocp.utils.checkpoint_steps(directory) if directory.exists() else []
  steps = sorted(steps)
  if jax.process_count() > 1:
    # Hosts may see a change, such as a renamed step, at different times.
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    own = np.zeros(count, np.int32)
    own[: len(steps)] = steps[:count]
    steps = multihost_utils.broadcast_one_to_all(own).tolist()
  return steps


def absolute(directory: epath.PathLike) -> epath.Path:
  """An absolute path, which Orbax requires; URLs are unchanged."""
  path = epath.Path(directory)
  return path if "://" in str(path) else path.expanduser().resolve()
