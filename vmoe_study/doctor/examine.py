"""All checks of a run, in the order of its config."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import cv2
import jax
import jax.numpy as jnp
from etils import epath

from vmoe_study import options
from vmoe_study.config import Config, InitializeSpec
from vmoe_study.data.classes import ClassNames
from vmoe_study.data.pipeline import TrainInput
from vmoe_study.data.preview import training_sheet
from vmoe_study.data.spec import DataSpec
from vmoe_study.doctor import classes as class_checks
from vmoe_study.doctor import data as data_checks
from vmoe_study.doctor import model as model_checks
from vmoe_study.doctor import workdir as workdir_checks
from vmoe_study.doctor.finding import OK, PROBLEM, SKIPPED, Finding, attempt
from vmoe_study.performance import data_sizes
from vmoe_study.run.experiment import Model


def examine(
  values: dict[str, Any],
  num_devices: int | None = None,
  workdir: str | None = None,
  preview: str | None = None,
  num_examples: int | None = None,
  image_shape: tuple[int, int, int] | None = None,
) -> Iterator[Finding]:
  """Checks a run without training: nothing is compiled or changed.

  Only caches of data sets are written, and the preview.

  Args:
    values: the config as nested dictionaries, valid or not.
    num_devices: number of devices of the run. They need not exist: from then on
      JAX computes on the CPU in this process. None for the devices of this
      process.
    workdir: workdir of the run; None if not decided yet.
    preview: PNG file for a picture of training images; None for none.
    num_examples: number of training images, if the data are not available: then
      no data are read. None to read the data.
    image_shape: height, width and channels of these images after the
      operations; None for the result of `data_sizes.image_shape`.
  """
  if num_devices is None:
    num_devices = jax.device_count()
  else:
    jax.config.update("jax_platforms", "cpu")
  return Examination(
    values, num_devices, workdir, preview, num_examples, image_shape
  ).run()


@dataclasses.dataclass
class Examination:
  """The checks of one run; each check stores what later ones need.

  Attributes:
    values: the config as nested dictionaries, valid or not.
    num_devices: number of devices of the run.
    workdir: workdir of the run; None if not decided yet.
    preview: PNG file for a picture of training images; None for none.
    num_examples: number of training images, if the data are not available; None
      to read the data.
    image_shape: shape of these images; None to look it up.
  """

  values: dict[str, Any]
  num_devices: int
  workdir: str | None = None
  preview: str | None = None
  num_examples: int | None = None
  image_shape: tuple[int, int, int] | None = None

  config: Config | None = dataclasses.field(default=None, init=False)
  probes: dict[DataSpec, Any] = dataclasses.field(
    default_factory=dict, init=False
  )
  data: TrainInput | None = dataclasses.field(default=None, init=False)
  class_names: ClassNames | None = dataclasses.field(default=None, init=False)
  model: Model | None = dataclasses.field(default=None, init=False)

  def run(self) -> Iterator[Finding]:
    """Yields all findings; never raises for a problem of the run."""
    of_data = self._check_data, self._check_classes, self._check_batch
    if self.num_examples is not None:
      of_data = (self._skip_data,)
    checks = (
      self._check_config,
      *of_data,
      self._draw_preview,
      self._check_model,
      self._check_initial_params,
      self._check_workdir,
      self._check_length,
      self._check_checkpoints,
    )
    for check in checks:
      yield from check()

  def _check_config(self) -> Iterator[Finding]:
    self.config, problems = attempt(
      "config", options.build, Config, "config", self.values
    )
    yield from problems
    if self.config:
      found = [Finding(PROBLEM, "config", p) for p in self.config.problems()]
      yield from found or [Finding(OK, "config", self.config.name)]

  def _check_data(self) -> Iterator[Finding]:
    shots = self.config.shots if self.config else ()
    for field in data_checks.find_data_fields(self.values):
      yield from data_checks.check_data(field, self.probes)
      is_readable = not self.probes[field.spec][1]
      if is_readable and re.fullmatch(r"fewshot\..*\.train", field.where):
        yield from data_checks.check_shots(field.where, field.spec, shots)

  def _check_classes(self) -> Iterator[Finding]:
    fields = data_checks.find_data_fields(self.values)
    probes = {
      field.where: self.probes[field.spec][0]
      for field in fields
      if self.probes[field.spec][0]
    }
    self.class_names, found = class_checks.find_classes(
      self.config, self.workdir, fields, probes
    )
    yield from found
    if self.class_names is not None:
      yield from class_checks.check_classes(self.class_names, fields, probes)

  def _check_batch(self) -> Iterator[Finding]:
    self.data, found = data_checks.check_batch(self.config)
    probes = [probe for probe, _ in self.probes.values() if probe]
    known = tuple(text for probe in probes for text in probe.damaged)
    for finding in found:
      if finding.text.startswith(known):
        reason = "because an example of it cannot be used, see above"
        finding = Finding(SKIPPED, finding.subject, reason)
      yield finding

  def _skip_data(self) -> Iterator[Finding]:
    reason = f"because --num-examples={self.num_examples} replaces them"
    yield Finding(SKIPPED, "data and classes", reason)
    for field in data_checks.find_data_fields(self.values):
      yield from data_checks.check_ops(field)

  def _draw_preview(self) -> Iterator[Finding]:
    if not self.preview:
      return
    if not self.data:
      reason = "because there is no training batch to draw"
      yield Finding(SKIPPED, "preview", reason)
      return
    _, problems = attempt("preview", _write_sheet, self.data, self.preview)
    yield from problems or [Finding(OK, "preview", f"drawn in {self.preview}")]

  def _image_shapes(self) -> dict[str, tuple[int, ...]]:
    """Known image shape of each data set, by field; training data first."""
    fields = data_checks.find_data_fields(self.values)
    if self.num_examples is not None:
      found = {
        field.where: attempt("", data_sizes.image_shape, field.spec)[0]
        for field in fields
      }
      found["data"] = self.image_shape or found.get("data")
      return {where: shape for where, shape in found.items() if shape}
    probes = [(field.where, self.probes[field.spec][0]) for field in fields]
    return {where: probe.image_shape for where, probe in probes if probe}

  def _check_model(self) -> Iterator[Finding]:
    if self.config is None:
      reason = "because the config is invalid, see above"
      yield Finding(SKIPPED, "devices and model", reason)
      return
    yield from model_checks.check_division(self.config, self.num_devices)
    shapes = self._image_shapes()
    if not shapes:
      reason = "because no data set can be read, see above"
      if self.num_examples is not None:
        reason = (
          "because the size of the images is unknown: --image-shape=HxWxC"
        )
      yield Finding(SKIPPED, "model", reason)
      return
    shape = shapes.get("data", next(iter(shapes.values())))
    self.model, found = model_checks.make_model(
      self.config, shape, self.num_devices
    )
    yield from found
    if self.model:
      yield from model_checks.check_image_sizes(self.model, shapes)

  def _check_initial_params(self) -> Iterator[Finding]:
    where, value = "initialize", self.values.get("initialize", {})
    spec, problems = attempt(where, options.build, InitializeSpec, where, value)
    if problems:
      reason = "because its fields are invalid, see above"
      yield Finding(SKIPPED, where, reason)
    elif self.workdir and workdir_checks.saved_steps(self.workdir):
      reason = "not needed, because the run resumes from its own checkpoint"
      yield Finding(OK, where, reason)
    else:
      yield from model_checks.check_initial_params(
        spec, self.model, self.class_names
      )

  def _check_workdir(self) -> Iterator[Finding]:
    if self.workdir is None:
      reason = "because none is given: --workdir=DIR"
      yield Finding(SKIPPED, "workdir and disk", reason)
    else:
      yield from workdir_checks.check_workdir(self.workdir, self.values)

  def _check_length(self) -> Iterator[Finding]:
    num_steps = self._num_steps()
    if self.config is None or num_steps is None:
      reason = "because config or training data cannot be read, see above"
      yield Finding(SKIPPED, "steps", reason)
    else:
      text = _describe_length(self.config, num_steps, self._num_examples())
      yield Finding(OK, "steps", text)

  def _check_checkpoints(self) -> Iterator[Finding]:
    """Checks the optimizer state, resuming, and the space for checkpoints."""
    config, num_steps = self.config, self._num_steps()
    if config is None or num_steps is None:
      return
    if self.model is None:
      reason = "because there is no model, see above"
      yield Finding(SKIPPED, "size of checkpoints", reason)
      return
    opt_state, problems = model_checks.optimizer_shapes(
      self.model, config, num_steps
    )
    yield from problems
    if problems or self.workdir is None:
      return
    state = {
      "params": self.model.params_shape,
      "opt_state": opt_state,
      "router_state": self.model.router_state_shape,
      "ema": self.model.params_shape if config.train.ema_decay else {},
    }
    saved = workdir_checks.saved_steps(self.workdir)
    if saved:
      yield from workdir_checks.check_resume(self.workdir, num_steps, state)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    yield workdir_checks.check_space(
      self.workdir, config.train, num_steps, [state, step], len(saved)
    )

  def _num_examples(self) -> int:
    """Number of training examples; 0 if the data cannot be read."""
    if self.num_examples is not None:
      return self.num_examples
    return self.data.num_examples if self.data else 0

  def _num_steps(self) -> int | None:
    """Number of steps of the run; None if unknown."""
    if self.config is None:
      return None
    if self.config.train.num_steps or self._num_examples():
      return self.config.train.total_steps(self._num_examples())
    return None


def _describe_length(config: Config, num_steps: int, num_examples: int) -> str:
  train = config.train
  images = num_steps * train.batch_size
  text = f"{num_steps:,} steps of {train.batch_size:,} images"
  if num_examples:
    text += f" = {images / num_examples:,.2f} epochs of {num_examples:,} images"
  evaluations = math.ceil(num_steps / (train.evaluate_every or num_steps))
  checkpoints = workdir_checks.num_checkpoints(train, num_steps)
  return f"{text}; {evaluations:,} evaluations and {checkpoints:,} checkpoints"


def _write_sheet(data: TrainInput, path: str) -> None:
  sheet = training_sheet(data)
  encoded = cv2.imencode(".png", sheet[..., ::-1])[1].tobytes()
  epath.Path(path).write_bytes(encoded)
