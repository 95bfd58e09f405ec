"""Checks of the model: batches, mesh, parameters and their initial values."""

import math
from collections.abc import Iterator
from typing import Any

import jax

from vmoe_study.config import (
  Config,
  InitializeSpec,
  check_batches,
  fit_to_devices,
)
from vmoe_study.data.classes import ClassNames
from vmoe_study.doctor.finding import NOTE, OK, SKIPPED, Finding, attempt
from vmoe_study.nn import cost
from vmoe_study.parallel.mesh import make_abstract_mesh
from vmoe_study.run import initialize
from vmoe_study.run.experiment import Model
from vmoe_study.training.optimizer import make_optimizer, make_schedule

READ_LIMIT = 4 << 30  # Bytes of initial parameters that are read in full.


def check_division(config: Config, num_devices: int) -> list[Finding]:
  """Checks that batches, groups and experts divide by the devices."""
  _, problems = attempt("devices", check_batches, config, num_devices)
  if problems:
    text = f"checked for {num_devices}; --devices=N checks another number"
    return [*problems, Finding(NOTE, "devices", text)]
  shape = config.mesh.shape(num_devices)
  per_device = config.train.batch_size / num_devices
  return [
    Finding(
      OK,
      "devices",
      f"{num_devices}, as mesh {shape}: {per_device:g} images per step on each,"
      f" routed in groups of {config.group_images}",
    )
  ]


def make_model(
  config: Config, image_shape: tuple[int, int, int], num_devices: int
) -> tuple[Model | None, list[Finding]]:
  """Builds the model with shapes only, on devices that need not exist.

  Uses one device if batches or mesh do not fit the devices; `check_division`
  reports that.
  """
  if attempt("", check_batches, config, num_devices)[1]:
    config, num_devices = fit_to_devices(config, 1), 1
  mesh = make_abstract_mesh(config.mesh, num_devices)
  model, problems = attempt("model", Model, config, image_shape, mesh)
  return model, problems or [Finding(OK, "model", _describe(model))]


def _describe(model: Model) -> str:
  moe = cost.routing(model.module, model.image_shape)
  total, active = cost.parameter_counts(model.params_shape, moe)
  router = model.config.model.moe.router
  return f"{total:,} parameters, {active:,} active per token; router {router}"


def check_image_sizes(
  model: Model, shapes: dict[str, tuple[int, ...]]
) -> Iterator[Finding]:
  """Checks that the model accepts the images of every evaluation."""
  for where, shape in shapes.items():
    yield from attempt(where, model.check_images, where, shape)[1]


def optimizer_shapes(
  model: Model, config: Config, num_steps: int
) -> tuple[Any, list[Finding]]:
  """Shapes of the optimizer state; checks schedule and weight decay."""

  def shapes():
    schedule = make_schedule(config.train.schedule, num_steps)
    optimizer = make_optimizer(
      config.train.optimizer, schedule, model.params_shape
    )
    return jax.eval_shape(optimizer.init, model.params_shape)

  return attempt("train", shapes)


def check_initial_params(
  spec: InitializeSpec,
  model: Model | None,
  class_names: ClassNames | None = None,
) -> list[Finding]:
  """Checks that the initial parameters can be read and fit the model.

  Args:
    spec: the source of the parameters.
    model: the run's model, if there is one.
    class_names: class names of the run, if they are known.
  """
  where = "initialize"
  if spec.kind == "random":
    return [Finding(OK, where, "random")]
  found, problems = attempt(where, initialize.source_shapes, spec)
  if problems:
    return problems
  if model is None:
    reason = "whether they fit, because there is no model to compare with"
    return [Finding(SKIPPED, where, reason), *_read(spec, found)]
  grid = initialize.grid_of(model.image_shape, model.module.patch_size)
  matched, problems = attempt(
    where,
    initialize.match_source,
    spec,
    found,
    model.params_shape,
    grid,
    class_names,
  )
  if not problems:
    _, report = matched
    problems = [Finding(OK, where, f"{spec.kind} {spec.path}: {report}")]
  return [*problems, *_read(spec, found)]


def _read(spec: InitializeSpec, found: Any) -> list[Finding]:
  """Reads all parameters to detect damage, unless they are too large."""
  size = sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(found)
  )
  if size > READ_LIMIT:
    text = f"{size / 2**30:.1f} GiB, of which only names and shapes were read"
    return [Finding(NOTE, "initialize", text)]
  _, problems = attempt("initialize", initialize.read_source, spec)
  text = f"{size / 2**20:,.1f} MiB read"
  return problems or [Finding(OK, "initialize", text)]
