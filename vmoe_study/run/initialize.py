"""Starting points: the parameters of a fresh run, from random or from others.

Fine-tuning and sparse upcycling are the same operation: the source is read to
host memory, its positions are resized to the model's, its dense MLPs become
experts where the model has experts and the source has none, and then every
array must find its place. Only a head of other classes is left behind. The
capacity of sparse routers has no parameters and is free to change.

Every host reads the whole source to its memory, whatever part of it its devices
keep.
"""

from typing import Any

import jax
from absl import logging

from vmoe_study.checkpoint import adapt
from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.checkpoint.foreign.import_vmoe import (
  read_vmoe,
  read_vmoe_shapes,
)
from vmoe_study.checkpoint.foreign.npz import load_npz
from vmoe_study.checkpoint.load import load_params, load_shapes
from vmoe_study.config import InitializeSpec
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.experiment import Model


def initial_params(spec: InitializeSpec, model: Model) -> Any:
  """Parameters for the first step, each array where the model wants it.

  A head for another number of classes, or after a representation layer that
  the model does not have, is replaced by the model's own, which is zero but
  for `head_bias_init`. Routers of upcycled models start at random.

  Raises:
    ValueError: source and model differ in more than that.
    CheckpointError: the source is missing or damaged.
  """
  if spec.kind == "random":
    return model.init()
  found, report = match_source(spec, read_source(spec), model.params_shape)
  logging.info("parameters from %s: %s", spec.path, report)
  found, _ = adapt.match_params(found, model.params_shape)
  return jax.tree.map(_place, model.init(), found)


def match_source(
  spec: InitializeSpec, source: dict[str, Any], wanted: Any
) -> tuple[dict[str, Any], adapt.MatchReport]:
  """The source's parameters, changed to those of the model.

  Args:
    spec: where they are from.
    source: parameters, or zeros in their place (`source_shapes`).
    wanted: arrays or shapes of the model's parameters.

  Raises:
    ValueError: source and model differ in more than `initial_params` allows.
  """
  source = adapt.resize_positions(_without_old_head(source, wanted), wanted)
  fresh = ["head/"]
  if _has_experts(wanted) and not _has_experts(source):
    source = _without_routers(adapt.upcycle(source, wanted))
    fresh.append("/Moe/Router/")
  report = adapt.compare(source, wanted)
  missing = [p for p in report.missing if not any(part in p for part in fresh)]
  if report.unused or report.mismatched or missing:
    raise ValueError(
      f"initialize.path={spec.path!r} does not fit the model: {report}\nAll "
      "arrays but the head must agree: set model.fields and model.moe as in "
      "the run that it comes from. Slots of a soft router are parameters: set "
      "its slots_per_expert to those of that run."
    )
  return source, report


def _place(initial: jax.Array, found: Any) -> jax.Array:
  """What was found, where the model wants it; or else the initial values."""
  if isinstance(found, jax.ShapeDtypeStruct):
    return initial
  return jax.device_put(found, initial.sharding)


def read_source(spec: InitializeSpec) -> dict[str, Any]:
  """All parameters of a source, verified, in host memory.

  Raises:
    CheckpointError: the source is missing or damaged.
  """
  if spec.kind == "checkpoint":
    return load_params(workdir_lib.checkpoints(spec.path))[0]
  return {"vmoe": read_vmoe, "npz": load_npz}[spec.kind](spec.path)


def source_shapes(spec: InitializeSpec) -> dict[str, Any]:
  """What `read_source` would return, as zeros that take no memory.

  Raises:
    CheckpointError: the source is missing or damaged.
  """
  if spec.kind == "checkpoint":
    return load_shapes(workdir_lib.checkpoints(spec.path))[0]
  if spec.kind == "vmoe":
    return read_vmoe_shapes(spec.path)
  return load_npz(spec.path, hollow=True)


def _without_old_head(source: dict[str, Any], wanted: Any) -> dict[str, Any]:
  """Leaves out a head that the model cannot use, and what it stood on."""
  old = {"pre_logits"} & (source.keys() - wanted.keys())
  classes = [tree.get("head", {}).get("bias") for tree in (source, wanted)]
  if old or classes[0] is None or classes[0].shape != classes[1].shape:
    old |= {"head"}
  return {name: tree for name, tree in source.items() if name not in old}


def _without_routers(source: dict[str, Any]) -> dict[str, Any]:
  leaves = tree_lib.flatten(source)
  return tree_lib.unflatten(
    {path: x for path, x in leaves.items() if "/Moe/Router/" not in path}
  )


def _has_experts(params: Any) -> bool:
  return any("/Moe/" in path for path in tree_lib.flatten(params))
