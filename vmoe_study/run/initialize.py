"""Initial parameters of a new run: random, or those of a source.

Fine-tuning and sparse upcycling are the same operation. Position embeddings are
resized to the model's grid of patches, and dense MLPs become experts if the
model has experts and the source has none. Then all parameters must agree by
path and shape, except for a head for other classes, which is newly initialized.
The capacity of sparse routers may change, because it has no parameters.

Our own checkpoints store the grid of patches of their positions. Files of other
code do not, so their positions are assumed to be those of square images.

Every host reads the whole source to memory, although its devices hold only a
part.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from vmoe_study.checkpoint import adapt
from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.checkpoint.foreign.npz import load_npz
from vmoe_study.checkpoint.foreign.vmoe import (
  read_vmoe,
  read_vmoe_shapes,
)
from vmoe_study.checkpoint.load import (
  absolute,
  load_metadata,
  load_params,
  load_shapes,
  restore_trees,
)
from vmoe_study.config import InitializeSpec
from vmoe_study.data.classes import ClassNames
from vmoe_study.nn.parameter_names import (
  EMBEDDING,
  HEAD,
  PRE_LOGITS,
  ROUTER_STATE,
  in_head,
  in_moe,
  in_router,
)
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.classes import source_classes
from vmoe_study.run.experiment import Model
from vmoe_study.run.metadata import Metadata


def initial_params(
  spec: InitializeSpec, model: Model, class_names: ClassNames | None = None
) -> Any:
  """The parameters before the first step, with the model's shardings.

  The head is newly initialized, with zeros except for `head_bias_init`, if the
  head of the source has other classes or follows a representation layer that
  the model does not have. Routers of upcycled models are random.

  Args:
    spec: the source of the parameters.
    model: model of the run.
    class_names: class names of the run; None to compare only the number of
      classes.

  Raises:
    ValueError: source and model differ in any other way.
    CheckpointError: the source is missing or damaged.
  """
  if spec.kind == "random":
    return model.init()
  grid = grid_of(model.image_shape, model.module.patch_size)
  source = read_source(spec)
  found, report = match_source(
    spec, source, model.params_shape, grid, class_names
  )
  logging.info("parameters from %s: %s", spec.path, report)
  if any(map(in_head, report.missing)):
    logging.warning("initialize: a new head, because the classes differ")
  elif class_names is None or source_classes(spec) is None:
    logging.warning(
      "initialize: the head is reused; its classes have no names and "
      "are not compared"
    )
  found, _ = adapt.match_params(found, model.params_shape)
  return jax.tree.map(_place, model.init(), found)


def initial_router_state(spec: InitializeSpec, model: Model) -> Any:
  """Initial router states; {} if no router has one.

  Those of a checkpoint if its routers have the same states, otherwise newly
  initialized ones.

  Raises:
    CheckpointError: the source is missing or damaged.
  """
  state = model.init_router_state()
  if not state or spec.kind != "checkpoint":
    return state
  directory = workdir_lib.checkpoints(spec.path)
  found, _ = load_shapes(directory, ROUTER_STATE)
  if jax.tree.map(np.shape, found) != jax.tree.map(np.shape, state):
    return state
  template = {ROUTER_STATE: model.router_state_template()}
  return restore_trees(absolute(directory), None, template)[1][ROUTER_STATE]


def match_source(
  spec: InitializeSpec,
  source: dict[str, Any],
  template: Any,
  grid: adapt.Grid | None = None,
  class_names: ClassNames | None = None,
) -> tuple[dict[str, Any], adapt.MatchReport]:
  """Adapts the parameters of a source to the model.

  Args:
    spec: the source, named in error messages.
    source: parameters, or placeholders from `source_shapes`.
    template: arrays or shapes of the model's parameters.
    grid: rows and columns of the model's patches; None for a square.
    class_names: class names of the run; None to compare only the number of
      classes.

  Returns:
    The adapted parameters, and a report of the match.

  Raises:
    ValueError: source and model differ in more than `initial_params` allows.
  """
  names = None if class_names is None else source_classes(spec)
  if names not in (None, class_names):
    source = {name: tree for name, tree in source.items() if name != HEAD}
  source = _without_old_head(source, template)
  source_grid = _source_grid(spec, source)
  source = adapt.resize_positions(source, template, source_grid, grid)
  upcycles = _has_experts(template) and not _has_experts(source)
  if upcycles:
    source = _without_routers(adapt.upcycle(source, template))
  report = adapt.compare(source, template)
  missing = [
    path
    for path in report.missing
    if not (in_head(path) or (upcycles and in_router(path)))
  ]
  if report.unused or report.mismatched or missing:
    raise ValueError(
      f"initialize.path={spec.path!r} does not fit the model: {report}\nAll "
      "arrays but the head must agree: set model.fields and model.moe as in "
      "the run that it comes from. Slots of a soft router are parameters: set "
      "its slots_per_expert to those of that run."
    )
  return source, report


def grid_of(image_shape: Sequence[int], patch_size: int) -> adapt.Grid:
  """Rows and columns of the patches of an image."""
  return image_shape[0] // patch_size, image_shape[1] // patch_size


def _source_grid(
  spec: InitializeSpec, source: dict[str, Any]
) -> adapt.Grid | None:
  """The grid of one of our own checkpoints; None if the source lacks it."""
  patches = source.get(EMBEDDING, {}).get("kernel")
  if spec.kind != "checkpoint" or patches is None:
    return None
  values, _ = load_metadata(workdir_lib.checkpoints(spec.path))
  return grid_of(Metadata.from_dict(values).image_shape, patches.shape[0])


def _place(initial: jax.Array, found: Any) -> jax.Array:
  """The source's parameter, or else the initial one, with its sharding."""
  if isinstance(found, jax.ShapeDtypeStruct):
    return initial
  return jax.device_put(found, initial.sharding)


def read_source(spec: InitializeSpec) -> dict[str, Any]:
  """Reads all parameters of a source to host memory and verifies them.

  Raises:
    CheckpointError: the source is missing or damaged.
  """
  if spec.kind == "checkpoint":
    return load_params(workdir_lib.checkpoints(spec.path))[0]
  return {"vmoe": read_vmoe, "npz": load_npz}[spec.kind](spec.path)


def source_shapes(spec: InitializeSpec) -> dict[str, Any]:
  """The tree of `read_source` with placeholders that take no memory.

  Raises:
    CheckpointError: the source is missing or damaged.
  """
  if spec.kind == "checkpoint":
    return load_shapes(workdir_lib.checkpoints(spec.path))[0]
  if spec.kind == "vmoe":
    return read_vmoe_shapes(spec.path)
  return load_npz(spec.path, shapes_only=True)


def _without_old_head(source: dict[str, Any], template: Any) -> dict[str, Any]:
  """Removes head and representation layer if the model cannot use them."""
  removed = {PRE_LOGITS} & (source.keys() - template.keys())
  old, new = (tree.get(HEAD, {}).get("bias") for tree in (source, template))
  if removed or old is None or old.shape != new.shape:
    removed |= {HEAD}
  return {name: tree for name, tree in source.items() if name not in removed}


def _without_routers(source: dict[str, Any]) -> dict[str, Any]:
  leaves = tree_lib.flatten(source)
  return tree_lib.unflatten(
    {path: leaf for path, leaf in leaves.items() if not in_router(path)}
  )


def _has_experts(params: Any) -> bool:
  return any(map(in_moe, tree_lib.flatten(params)))
