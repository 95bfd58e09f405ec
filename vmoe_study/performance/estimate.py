"""Resource estimates of a run on TPU slices, from its compiled step.

The real training step of a config is compiled ahead of time by libtpu. Memory
of the program and FLOPs are the compiler's figures; the batches that wait on
the devices are added to the memory. Traffic is read from the program
(`performance.hlo`), and times follow from it (`performance.roofline`).
"""

import dataclasses
import re
from typing import Any

import jax

from vmoe_study.config import Config
from vmoe_study.console.progress import waiting
from vmoe_study.nn import cost
from vmoe_study.parallel.mesh import make_mesh
from vmoe_study.performance import hlo, roofline
from vmoe_study.performance.sizes import (
  batch_template,
  host_bytes,
  kept_bytes,
  plan_form,
  sizes_of,
  with_plan_form,
)
from vmoe_study.performance.target import CompileTarget, libtpu_version
from vmoe_study.routing.plan import best_plan_form
from vmoe_study.run.experiment import Model, Training

SECONDS_PER_DAY = 86_400
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class ResourceEstimate:
  """The resources that a training step needs on TPU slices or GPUs.

  Bytes and FLOPs are per device and step. If XLA finds no room for the step,
  there is no compiled program, and the fields that need one are None.

  Attributes:
    config: name of the config.
    topology: name of the slice, such as "v5e:4x4".
    slices: number of slices.
    devices: number of JAX devices: one per chip, two on tpu7x.
    compiler: the compiler of the step, with its version.
    mesh: mesh axes and their sizes.
    fsdp: whether all parameters are sharded.
    remat: what the backward pass recomputes.
    accumulation: number of parts of a batch that are computed in sequence.
    moment_dtype: dtype of the optimizer's first moment; empty for the default.
    batches_ahead: number of batches that may wait on the devices.
    plan_form: "index" or "dense" for a sparse router, else None.
    capacity_factor: actual capacity factor, after rounding the slots; None
      without a router.
    batch_size: images per step, over all chips.
    parameters: number of parameters.
    active_parameters: number of parameters that are active for a token.
    model_flops_per_chip: FLOPs of the matrix products that define the model.
    fits: whether everything counted in `hbm_bytes` fits. Evaluations are not
      counted.
    hbm_bytes: HBM use by part, the "total", and the "capacity" that programs
      can use.
    host_bytes: memory of all hosts together: "checkpoint", the copy that is
      being written, and "batches", the batches that wait to be sent.
    flops_per_chip: FLOPs of the compiled step.
    hbm_traffic_bytes: bytes read from and written to HBM, with the padding of
      tiles.
    collectives: {kind: {"count", "bytes"}} of the communication.
    step_seconds: see `roofline.step_seconds`.
    bottleneck: "compute", "hbm" or "exposed" communication.
    images_per_second: over all devices, if a step takes
      step_seconds["step"].
    days: duration of the whole run at this speed, without evaluations and
      checkpoints.
  """

  config: str
  topology: str
  slices: int
  devices: int
  compiler: str
  mesh: dict[str, int]
  fsdp: bool
  remat: str
  accumulation: int
  moment_dtype: str
  batches_ahead: int
  plan_form: str | None
  capacity_factor: float | None
  batch_size: int
  parameters: int
  active_parameters: int
  model_flops_per_chip: float
  fits: bool
  hbm_bytes: dict[str, float]
  host_bytes: dict[str, float]
  flops_per_chip: float | None = None
  hbm_traffic_bytes: float | None = None
  collectives: dict[str, dict[str, float]] | None = None
  step_seconds: dict[str, float] | None = None
  bottleneck: str | None = None
  images_per_second: float | None = None
  days: float | None = None

  def to_dict(self) -> dict[str, Any]:
    """The estimate as a JSON-able dictionary."""
    return dataclasses.asdict(self)


def estimate_resources(
  config: Config,
  target: CompileTarget,
  image_shape: tuple[int, int, int],
  num_examples: int,
) -> ResourceEstimate:
  """Compiles the training step for slices and analyses it.

  Args:
    config: config of the run.
    target: the slices.
    image_shape: height, width and channels.
    num_examples: number of training images; used if the config counts epochs.

  Raises:
    ValueError: the config cannot run on this number of chips.
  """
  model = model_on(target, config, image_shape)
  config = model.config
  training = Training(model, num_examples)
  kept = kept_bytes(training)
  sizes = sizes_of(model) | {
    "topology": target.tpu_slice.name,
    "slices": target.num_slices,
    "compiler": f"libtpu {libtpu_version()}",
    "host_bytes": host_bytes(training),
  }
  batch = batch_template(model)
  try:
    with waiting(f"compiling for {target.tpu_slice.name}"):
      lowered = training.step.lower(training.state_template(), batch)
      compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    needed = _needed_bytes(error, kept)
    memory = _memory_of_failed(kept, needed, target.hbm_bytes)
    return ResourceEstimate(**sizes, fits=False, hbm_bytes=memory)
  memory = _memory(compiled, kept, config.train.batches_ahead, target.hbm_bytes)
  fits = memory["total"] <= memory["capacity"]
  speed = _speed(compiled, training, target)
  return ResourceEstimate(**sizes, fits=fits, hbm_bytes=memory, **speed)


def model_on(
  target: CompileTarget, config: Config, image_shape: tuple[int, int, int]
) -> Model:
  """The model on slices, in the plan form that TPUs take."""
  mesh = make_mesh(config.mesh, target.devices)
  model = Model(config, image_shape, mesh)
  if plan_form(config) != "auto":
    return model
  slots = cost.routing(model.module, image_shape).slots_per_group
  form = best_plan_form("tpu", slots)
  return Model(with_plan_form(config, form), image_shape, mesh)


def _speed(
  compiled: Any, training: Training, target: CompileTarget
) -> dict[str, Any]:
  """FLOPs and traffic of a step, and their times."""
  model, spec = training.model, training.model.config.train
  # XLA counts the body of the accumulation loop once, which is nearly the whole
  # step.
  flops = compiled.cost_analysis()["flops"] * spec.accumulation
  schedule = hlo.schedule(compiled.as_text())
  traffic = hlo.traffic(schedule)
  seconds = roofline.step_seconds(flops, schedule, target.links(model.mesh))
  return {
    "flops_per_chip": flops,
    "hbm_traffic_bytes": traffic.hbm_bytes,
    "collectives": hlo.summary(traffic.collectives),
    **speed_of(seconds, training),
  }


def speed_of(seconds: dict[str, float], training: Training) -> dict[str, Any]:
  """The fields of a `ResourceEstimate` that follow from the step time."""
  size = training.model.config.train.batch_size
  return {
    "step_seconds": seconds,
    "bottleneck": roofline.bottleneck(seconds),
    "images_per_second": size / seconds["step"],
    "days": seconds["step"] * training.num_steps / SECONDS_PER_DAY,
  }


def _memory(
  compiled: Any, kept: dict[str, int], batches_ahead: int, capacity: float
) -> dict[str, float]:
  """HBM use by part.

  "padding" is that of parameters and optimizer state to tiles; batches include
  their padding. "activations" are all temporaries, including gradients.
  """
  memory = compiled.memory_analysis()
  arguments = hlo.argument_bytes(compiled.as_text())
  batch = sum(arguments[-2:])  # The batch comes last: image, label.
  state = sum(kept.values()) - kept["batch"] - kept["waiting batches"]
  parts = {
    **kept,
    "padding": memory.argument_size_in_bytes - batch - state,
    "batch": batch,
    "waiting batches": batches_ahead * batch,
    "activations": memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes,
    "program": memory.generated_code_size_in_bytes,
  }
  return {**parts, "total": sum(parts.values()), "capacity": capacity}


def _memory_of_failed(
  kept: dict[str, int], needed: float, capacity: float
) -> dict[str, float]:
  """HBM use by part, for a step that needs more than the capacity.

  Args:
    kept: result of `kept_bytes`.
    needed: HBM that the step needs, with its state and one batch.
    capacity: capacity of the HBM.
  """
  total = needed + kept["waiting batches"]
  rest = max(total - sum(kept.values()), 0)
  return {**kept, "activations": rest, "total": total, "capacity": capacity}


def _needed_bytes(
  error: jax.errors.JaxRuntimeError, kept: dict[str, int]
) -> float:
  """The HBM that the step needs, from the compiler's error message.

  Re-raises the error if it is not about memory.
  """
  message = str(error)
  sizes = re.findall(r"([\d.]+)([KMGT])\b", message)
  if "RESOURCE_EXHAUSTED" not in message or not sizes:
    raise error
  largest = max(float(number) * _UNITS[unit] for number, unit in sizes)
  arguments = sum(kept.values()) - kept["waiting batches"]
  return largest + ("temporaries" in message) * arguments
