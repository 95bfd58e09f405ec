"""Resource estimate of a run on a TPU slice: its compiled step, analysed.

The real training step of a config is compiled ahead of time by libtpu. Memory
and FLOPs are the compiler's figures, traffic is read from the program
(`performance.hlo`), and times are a roofline (`performance.roofline`).
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from vmoe_study.config import Config
from vmoe_study.nn import cost
from vmoe_study.parallel import sharding
from vmoe_study.parallel.mesh import make_mesh
from vmoe_study.performance import hlo, roofline
from vmoe_study.performance.target import Target
from vmoe_study.routing.plan import best_plan_form
from vmoe_study.run.experiment import Model, Training

SECONDS_PER_DAY = 86_400
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class ResourceEstimate:
  """What a training step needs on a slice, and how fast it can be at best.

  Bytes and FLOPs are per chip and step. If the step does not fit into the HBM,
  it has no compiled program, and the fields that need one are None.

  Attributes:
    config: name of the config.
    topology: name of the slice, such as "v5e:4x4".
    chips: number of chips.
    mesh: mesh axes and their sizes.
    plan_form: "index" or "dense" for a sparse router, else None.
    capacity_factor: in effect, after rounding the slots; None without a router.
    batch_size: images per step, over all chips.
    parameters: number of parameters.
    active_parameters: number of parameters that one token passes.
    model_flops_per_chip: FLOPs of the matrix products that define the model.
    fits: whether the step fits into the HBM.
    hbm_bytes: use of HBM by part, their "total", and the chip's "capacity".
    flops_per_chip: FLOPs of the compiled step.
    hbm_traffic_bytes: bytes read from and written to HBM.
    collectives: {kind: {"count", "bytes"}} of the communication.
    step_seconds: time that each resource is busy: "compute", "hbm",
      "interconnect".
    bound: the resource with the longest time.
    images_per_second: upper bound of the speed, over all chips.
    days: lower bound of the time of the whole run.
  """

  config: str
  topology: str
  chips: int
  mesh: dict[str, int]
  plan_form: str | None
  capacity_factor: float | None
  batch_size: int
  parameters: int
  active_parameters: int
  model_flops_per_chip: float
  fits: bool
  hbm_bytes: dict[str, float]
  flops_per_chip: float | None = None
  hbm_traffic_bytes: float | None = None
  collectives: dict[str, dict[str, float]] | None = None
  step_seconds: dict[str, float] | None = None
  bound: str | None = None
  images_per_second: float | None = None
  days: float | None = None

  def to_dict(self) -> dict[str, Any]:
    """As JSON-able dictionary."""
    return dataclasses.asdict(self)


def estimate_resources(
  config: Config,
  target: Target,
  image_shape: tuple[int, int, int],
  num_examples: int,
) -> ResourceEstimate:
  """Compiles the training step for a slice and analyses it.

  Args:
    config: of the run.
    target: the slice.
    image_shape: height, width and channels.
    num_examples: number of training images; used if the config counts epochs.

  Raises:
    ValueError: the config cannot run on this number of chips.
  """
  mesh = make_mesh(config.mesh, target.devices)
  model = Model(config, image_shape, mesh)
  if plan_form(config) == "auto":
    slots = cost.routing(model.module, image_shape).slots_per_group
    config = with_plan_form(config, best_plan_form("tpu", slots))
    model = Model(config, image_shape, mesh)
  training = Training(model, num_examples)
  template = training.state_template()
  state = {
    "parameters": _bytes_per_chip(template.params),
    "optimizer": _bytes_per_chip(template.opt_state),
  }
  capacity = target.tpu_slice.chip.hbm_bytes
  sizes = _sizes(model) | {"topology": target.tpu_slice.name}
  try:
    compiled = training.step.lower(template, _batch_template(model)).compile()
  except jax.errors.JaxRuntimeError as error:
    needed = _needed_bytes(error, state)
    memory = _memory_of_failed(state, needed, capacity)
    return ResourceEstimate(**sizes, fits=False, hbm_bytes=memory)
  memory = _memory(compiled, state, capacity)
  speed = _speed(compiled, training, target)
  return ResourceEstimate(**sizes, fits=True, hbm_bytes=memory, **speed)


def plan_form(config: Config) -> str | None:
  """The plan form of a sparse router; None for Soft MoE and dense models."""
  moe = config.model.moe
  if not moe.is_sparse:
    return None
  return moe.options.get("plan_form", "index")


def with_plan_form(config: Config, form: str | None) -> Config:
  """The config with another plan form; None changes nothing."""
  if form is None:
    return config
  moe = config.model.moe
  moe = dataclasses.replace(moe, options={**moe.options, "plan_form": form})
  model = dataclasses.replace(config.model, moe=moe)
  return dataclasses.replace(config, model=model)


def _sizes(model: Model) -> dict[str, Any]:
  """What is known before compilation."""
  config = model.config
  moe = cost.routing(model.module, model.image_shape)
  total, active = cost.parameter_counts(model.params_shape, moe)
  batch_size = config.train.batch_size
  flops = cost.training_flops(model.module, model.image_shape) * batch_size
  return {
    "config": config.name,
    "chips": model.mesh.size,
    "mesh": dict(model.mesh.shape),
    "plan_form": plan_form(config),
    "capacity_factor": moe.capacity_factor if moe else None,
    "batch_size": batch_size,
    "parameters": total,
    "active_parameters": active,
    "model_flops_per_chip": flops / model.mesh.size,
  }


def _batch_template(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes, dtypes and shardings of a training batch."""
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


def _speed(compiled: Any, training: Training, target: Target) -> dict[str, Any]:
  """Work and traffic of a step, and lower bounds of their time."""
  model, spec = training.model, training.model.config.train
  # XLA counts the body of the accumulation loop once, which is nearly the whole
  # step.
  flops = compiled.cost_analysis()["flops"] * spec.accumulation
  traffic = hlo.traffic(compiled.as_text())
  seconds = roofline.step_seconds(
    flops, traffic, target.tpu_slice, target.coordinates(model.mesh)
  )
  bound = roofline.bottleneck(seconds)
  return {
    "flops_per_chip": flops,
    "hbm_traffic_bytes": traffic.hbm_bytes,
    "collectives": hlo.summary(traffic.collectives),
    "step_seconds": seconds,
    "bound": bound,
    "images_per_second": spec.batch_size / seconds[bound],
    "days": seconds[bound] * training.num_steps / SECONDS_PER_DAY,
  }


def _memory(
  compiled: Any, state: dict[str, int], capacity: float
) -> dict[str, float]:
  """Use of HBM by part: inputs, peak of the temporaries, program code.

  "batch" includes the padding of arrays to the chip's tiles; "activations" are
  all temporaries, including gradients.
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


def _memory_of_failed(
  state: dict[str, int], needed: float, capacity: float
) -> dict[str, float]:
  """Use of HBM by part, for a step that needs more than there is."""
  rest = max(needed - sum(state.values()), 0)
  return {**state, "activations": rest, "total": needed, "capacity": capacity}


def _bytes_per_chip(template: Any) -> int:
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(template)
  )


def _needed_bytes(
  error: jax.errors.JaxRuntimeError, state: dict[str, int]
) -> float:
  """HBM that the step needs, from the compiler's error message.

  Re-raises the error if it is not about memory.
  """
  message = str(error)
  sizes = re.findall(r"([\d.]+)([KMGT])\b", message)
  if "RESOURCE_EXHAUSTED" not in message or not sizes:
    raise error
  largest = max(float(number) * _UNITS[unit] for number, unit in sizes)
  return largest + ("temporaries" in message) * sum(state.values())
