"""What a run would need on a TPU slice, found without one.

The real training step of a config is compiled ahead of time by libtpu for a
slice that need not exist. Memory and FLOPs are the compiler's, traffic is read
from its program (`analysis.hlo`), times are a roofline (`analysis.roofline`).
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from vmoe_study.config import Config, check_batches
from vmoe_study.nn import cost
from vmoe_study.nn.router import ROUTERS, SparseRouter
from vmoe_study.parallel import sharding
from vmoe_study.parallel.mesh import MeshSpec, make_mesh
from vmoe_study.performance import hlo, roofline
from vmoe_study.performance.chips import Slice, parse_slice
from vmoe_study.routing.plan import best_plan_form
from vmoe_study.run.experiment import Model, Training

Report = dict[str, Any]

SECONDS_PER_DAY = 86_400
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Target:
  """A slice, and what the compiler knows as its devices."""

  where: Slice
  devices: list[Any]

  def coordinates(self, mesh: jax.sharding.Mesh) -> np.ndarray:
    """(chips, axes): where the chips of a mesh are, in its order."""
    axes = len(self.where.shape)
    return np.array([chip.coords[:axes] for chip in mesh.devices.flat])


def open_target(topology: str) -> Target:
  """Asks libtpu for the devices of a slice such as "v5e:4x4".

  JAX itself computes on the CPU from here on.

  Raises:
    ValueError: if there is no such slice, or no libtpu.
  """
  where = parse_slice(topology)
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      "Planning needs libtpu, the compiler for TPUs (no TPU is needed): "
      "pip install -e .[plan]"
    )
  # One process at a time may hold TPUs. None are held here.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  # libtpu would search for TPUs, and complain that it finds none.
  for name, value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
  }.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")
  try:
    description = topologies.get_topology_desc(
      platform="tpu", topology_name=topology, **dict(where.chip.options)
    )
  except jax.errors.JaxRuntimeError as error:
    known = ", ".join(where.chip.slices)
    raise ValueError(
      f"topology {topology!r}: libtpu knows no such slice ({error}). Slices of "
      f"this chip are {known}."
    ) from error
  return Target(where, description.devices)


def plan(
  config: Config,
  target: Target,
  image_shape: tuple[int, int, int],
  num_examples: int,
) -> Report:
  """Compiles the training step and reports what it needs; JSON-able.

  Args:
    config: of the run.
    target: where it would run.
    image_shape: height, width and channels.
    num_examples: training images; of interest where the config counts epochs.

  Returns:
    Sizes in bytes and FLOPs are per chip and step.
    Where the step does not fit, what only a compiled program tells is None.

  Raises:
    ValueError: if the config cannot run on so many chips.
  """
  mesh = make_mesh(config.mesh, target.devices)
  model = Model(config, image_shape, mesh)
  if _plan_form(config) == "auto":
    slots = cost.routing(model.module, image_shape).slots_per_group
    config = _with_plan_form(config, best_plan_form("tpu", slots))
    model = Model(config, image_shape, mesh)
  training = Training(model, num_examples)
  template = training.state_template()
  state = {
    "parameters": _bytes_per_chip(template.params),
    "optimizer": _bytes_per_chip(template.opt_state),
  }
  report = _sizes(model, target.where)
  capacity = target.where.chip.hbm_bytes
  try:
    compiled = training.step.lower(template, _batch(model)).compile()
  except jax.errors.JaxRuntimeError as error:
    needed = _needed_bytes(error, state)
    return report | _unfit(state, needed, capacity)
  report |= {"fits": True, "hbm_bytes": _memory(compiled, state, capacity)}
  return report | _speed(compiled, training, target)


def _sizes(model: Model, where: Slice) -> Report:
  """What is known before compiling."""
  config = model.config
  moe = cost.routing(model.module, model.image_shape)
  total, active = cost.parameter_counts(model.params_shape, moe)
  batch = config.train.batch_size
  flops = cost.training_flops(model.module, model.image_shape) * batch
  return {
    "config": config.name,
    "topology": where.name,
    "chips": model.mesh.size,
    "mesh": dict(model.mesh.shape),
    "plan_form": _plan_form(config),
    "batch_size": batch,
    "parameters": total,
    "active_parameters": active,
    "model_flops_per_chip": flops / model.mesh.size,
  }


def _batch(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
  """A training batch, abstractly."""
  size = model.config.train.batch_size
  shapes = {
    "image": (size, *model.image_shape),
    "label": (size, model.config.data.num_classes),
  }
  spec = sharding.by_batch(model.mesh)
  return {
    name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=spec)
    for name, shape in shapes.items()
  }


def _speed(compiled: Any, training: Training, target: Target) -> Report:
  """Work and traffic of a step, and the time that they take at least."""
  model, spec = training.model, training.model.config.train
  # XLA counts the loop over parts of the batch, nearly all of a step, once.
  flops = compiled.cost_analysis()["flops"] * spec.accumulation
  traffic = hlo.traffic(compiled.as_text())
  seconds = roofline.step_seconds(
    flops, traffic, target.where, target.coordinates(model.mesh)
  )
  bound = roofline.binding(seconds)
  return {
    "flops_per_chip": flops,
    "hbm_traffic_bytes": traffic.hbm_bytes,
    "collectives": hlo.summary(traffic.collectives),
    "step_seconds": seconds,
    "bound": bound,
    "images_per_second": spec.batch_size / seconds[bound],
    "days": seconds[bound] * training.num_steps / SECONDS_PER_DAY,
  }


def _unfit(state: dict[str, int], needed: float, capacity: float) -> Report:
  rest = max(needed - sum(state.values()), 0)
  parts = {**state, "activations": rest, "total": needed, "capacity": capacity}
  unknown = (
    "flops_per_chip",
    "hbm_traffic_bytes",
    "collectives",
    "step_seconds",
    "bound",
    "images_per_second",
    "days",
  )
  return {"fits": False, "hbm_bytes": parts} | dict.fromkeys(unknown)


def _memory(
  compiled: Any, state: dict[str, int], capacity: float
) -> dict[str, float]:
  """HBM by part: what the step takes in, what it needs at its peak, its code.

  "batch" includes the padding of arrays to the chip's tiles; "activations" are
  all temporaries, gradients among them.
  """
  memory = compiled.memory_analysis()
  parts = {
    **state,
    "batch": memory.argument_size_in_bytes - sum(state.values()),
    "activations": memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    "program": memory.generated_code_size_in_bytes,
  }
  return {**parts, "total": sum(parts.values()), "capacity": capacity}


def _bytes_per_chip(template: Any) -> int:
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(template)
  )


def _needed_bytes(
  error: jax.errors.JaxRuntimeError, state: dict[str, int]
) -> float:
  """How much HBM the compiler says that the step would need.

  Raises the error again if it is not about memory.
  """
  message = str(error)
  sizes = re.findall(r"([\d.]+)([KMGT])\b", message)
  if "RESOURCE_EXHAUSTED" not in message or not sizes:
    raise error
  largest = max(float(number) * _UNITS[unit] for number, unit in sizes)
  return largest + ("temporaries" in message) * sum(state.values())


def _plan_form(config: Config) -> str | None:
  """Of the sparse routers; the others have no choice."""
  moe = config.model.moe
  if ROUTERS[moe.router].router is not SparseRouter:
    return None
  return moe.options.get("plan_form", "index")


def variants(config: Config, num_chips: int) -> Iterator[Config]:
  """The config on every mesh that it can run on, in every form of plan."""
  for expert in range(1, num_chips + 1):
    if num_chips % expert or (expert > 1 and not config.model.is_routed):
      continue
    mesh = MeshSpec(num_chips // expert, expert, config.mesh.fsdp)
    candidate = dataclasses.replace(config, mesh=mesh)
    try:
      check_batches(candidate, num_chips)
    except ValueError:
      continue
    forms = ["index", "dense"] if _plan_form(config) else [None]
    for form in forms:
      yield _with_plan_form(candidate, form)


def _with_plan_form(config: Config, form: str | None) -> Config:
  if form is None:
    return config
  moe = config.model.moe
  moe = dataclasses.replace(moe, options={**moe.options, "plan_form": form})
  model = dataclasses.replace(config.model, moe=moe)
  return dataclasses.replace(config, model=model)


def fastest(reports: Sequence[Report]) -> Report | None:
  """The report with the shortest step among those that fit."""
  fitting = [report for report in reports if report["fits"]]
  return max(fitting, key=lambda r: r["images_per_second"], default=None)
