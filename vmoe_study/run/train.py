"""Trains a model, or resumes a run."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview
from etils import epath
from jax.experimental import multihost_utils

from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.load import absolute, complete_steps
from vmoe_study.checkpoint.store import CheckpointStore
from vmoe_study.config import Config
from vmoe_study.data.classes import ClassNames
from vmoe_study.data.pipeline import TrainInput
from vmoe_study.data.prefetch import Prefetcher
from vmoe_study.data.workers import close_workers
from vmoe_study.files.location import expand
from vmoe_study.nn.cost import parameter_counts, routing, training_flops
from vmoe_study.parallel import compilation_cache, hosts
from vmoe_study.parallel.sharding import to_global
from vmoe_study.run import lock
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.best import BestModel
from vmoe_study.run.classes import known_classes
from vmoe_study.run.experiment import Model, Training
from vmoe_study.run.failures import Failures
from vmoe_study.run.finished import is_evaluated, last_step
from vmoe_study.run.initialize import initial_params, initial_router_state
from vmoe_study.run.inputs import (
  describe_workers,
  make_evaluators,
  make_indices,
  open_train_input,
)
from vmoe_study.run.metadata import Metadata
from vmoe_study.training import loop
from vmoe_study.training.health import CollapseDetector
from vmoe_study.training.metrics import MetricsWriter
from vmoe_study.training.metrics_file import read_metrics
from vmoe_study.training.optimizer import check_schedule
from vmoe_study.training.preemption import Preemption
from vmoe_study.training.profile import StepProfile
from vmoe_study.training.stalls import StallWatch
from vmoe_study.training.state import TrainState
from vmoe_study.training.steps_ahead import StepsAhead
from vmoe_study.training.trackers import check_installed

MakeObserver = Callable[[Model, ClassNames | None], loop.Observer]


@dataclasses.dataclass(frozen=True)
class TrainResult:
  """The progress and the metrics of a run.

  Attributes:
    workdir: folder of the run.
    step: number of training steps so far.
    num_steps: number of steps of the whole run.
    metrics: the last value of every metric; empty on hosts other than the
      first.
    is_finished: whether the last step is saved and evaluated; with early
      stopping, it may come before `num_steps`. False if the run was asked to
      stop; the same call resumes it.
  """

  workdir: epath.Path
  step: int
  num_steps: int
  metrics: dict[str, float]
  is_finished: bool


def train(
  config: Config,
  workdir: epath.PathLike,
  *,
  allow_change: bool = False,
  verbose: bool = False,
  observers: Sequence[MakeObserver] = (),
  profile: int = 0,
) -> TrainResult:
  """Trains a model, or resumes the run of this workdir.

  Checkpoints, metrics and the config are written to the workdir. A run that is
  killed at any moment is resumed by the same call. On SIGTERM and on the first
  Ctrl-C it saves and returns early; the second Ctrl-C raises KeyboardInterrupt.

  Args:
    config: config of the run, as read by `load_config`.
    workdir: local path or URL; created if it does not exist.
    allow_change: whether the config may differ from the workdir's in fields
      that do not affect the results; see `saved_config.CHANGEABLE_FIELDS`.
    verbose: whether to log a table of the parameters, the sizes of the routing
      and the images/s that a core decodes, in addition to one line about the
      run.
    observers: called with model and class names; return observers to be called
      after evaluations, such as `inspection.observe.RoutingPictures`.
    profile: number of steps to trace, after the first ten of this call; see
      `training.profile.StepProfile`.

  Raises:
    ValueError: config, data, devices and workdir do not fit together.
    MissingDataError: a data set is not prepared.
    CheckpointError: the workdir has no intact checkpoint, or the last one could
      not be saved.
    TrainingFailure: a step was not finite, or routers have collapsed.

  >>> from vmoe_study import load_config
  >>> tiny = ["train.num_epochs=1.0", "train.schedule.warmup_steps=2"]
  >>> tiny += ["model.fields.width=16", "model.fields.depth=2"]
  >>> result = train(load_config("configs/digits.py", tiny), "runs/digits")
  >>> result.step, result.is_finished
  (23, True)
  """
  workdir = expand("workdir", workdir)
  check_installed(config.train.trackers)
  make_indices(config, workdir)
  data = open_train_input(config, known_classes(config, workdir))
  num_steps = config.train.total_steps(data.num_examples)
  check_schedule(config.train.schedule, num_steps)  # Before anything slow.
  run = _Run(config, workdir, data, observers, profile)
  check = functools.partial(
    workdir_lib.check, workdir, config.to_dict(), allow_change
  )
  with hosts.raise_on_all_hosts():
    check()
  with contextlib.ExitStack() as stack:
    state = run.restore_or_init(stack)
    with hosts.raise_on_all_hosts():
      check(saved=run.saved_config)  # No other run can write now.
      workdir_lib.write_config(workdir, config.to_dict())
    logging.info("%s", run.describe(state))
    if verbose:
      run.log_details(state)
    state, is_finished = run.train(state, stack)
  return TrainResult(
    epath.Path(workdir),
    int(state.step),
    num_steps,
    _last_metrics(workdir),
    is_finished,
  )


def _last_metrics(workdir: epath.PathLike) -> dict[str, float]:
  """The last value of every metric."""
  metrics: dict[str, float] = {}
  if jax.process_index() == 0:
    for row in read_metrics(workdir):
      metrics |= row
  return metrics


class _Run:
  """The parts of a run: model, optimizer, evaluators, checkpoints.

  Attributes:
    saved_config: config in the restored checkpoint; None in a new run.
  """

  def __init__(
    self,
    config: Config,
    workdir: epath.PathLike,
    data: TrainInput,
    observers: Sequence[MakeObserver],
    profile: int,
  ):
    self.saved_config: dict[str, Any] | None = None
    self._config, self._workdir, self._data = config, workdir, data
    self._profile = profile
    self._model = Model(config, data.image_shape)
    self._training = Training(self._model, data.num_examples)
    self._evaluators = make_evaluators(self._model, data.class_names)
    self._observers = [
      make(self._model, data.class_names) for make in observers
    ]
    self._metadata = Metadata(
      config.to_dict(),
      data.image_shape,
      data.num_examples,
      class_names=data.class_names,
    )

  def restore_or_init(self, stack: contextlib.ExitStack) -> TrainState:
    """The state to start from; holds the workdir's lock until `stack` closes.

    Until then, compiled programs are also cached in the workdir. A start that
    fails leaves no workdir behind.
    """
    spec = self._config.train
    directory = absolute(workdir_lib.checkpoints(self._workdir))
    state = None
    if not complete_steps(directory):  # The same answer on all hosts.
      start = self._config.initialize
      params = initial_params(start, self._model, self._data.class_names)
      router_state = initial_router_state(start, self._model)
      state = self._training.init(params, router_state)
    stack.enter_context(lock.hold(self._workdir))
    stack.enter_context(compilation_cache.cached_in(self._workdir))
    self._store = CheckpointStore(
      directory, keep=spec.keep, keep_every=spec.keep_every or None
    )
    stack.callback(self._store.close)
    if complete_steps(directory):  # Another run may have saved one.
      state = self._restore()
    return state

  def _restore(self) -> TrainState:
    template = self._training.state_template()
    found = self._store.restore(
      params=template.params,
      opt_state=template.opt_state,
      router_state=template.router_state,
      ema=template.ema,
    )
    metadata = Metadata.from_dict(found.metadata)
    self._model.check_images("checkpoint", metadata.image_shape)
    self.saved_config = dict(metadata.config)
    self._metadata = dataclasses.replace(
      self._metadata, skipped_steps=metadata.skipped_steps
    )
    return self._training.state_at(
      found.step, found.params, found.opt_state, **found.more
    )

  def describe(self, state: TrainState) -> str:
    """One line: parameters, FLOPs, slots, devices, data and progress."""
    model, config = self._model, self._config
    moe = routing(model.module, model.image_shape)
    total, active = parameter_counts(model.params_shape, moe)
    flops = training_flops(model.module, model.image_shape)
    axes = {name: size for name, size in model.mesh.shape.items() if size > 1}
    mesh = ", ".join(f"{name}={size}" for name, size in axes.items())
    names = [config.data.name, *(s.data.name for s in config.mixture.values())]
    slots = f"actual capacity factor {moe.capacity_factor:.3g}; " if moe else ""
    return (
      f"{total:,} parameters, {active:,} active per token; "
      f"{flops / 1e9:.3g} GFLOPs per image; {slots}"
      f"mesh {mesh or 'of one device'}; "
      f"{self._data.num_examples:,} images of {', '.join(names)}; "
      f"step {int(state.step)} of {self._training.num_steps}"
    )

  def log_details(self, state: TrainState) -> None:
    """Logs the parameters, the sizes of the routing and the decoding rate."""
    # Without statistics: those of experts on other hosts cannot be fetched.
    table = parameter_overview.get_parameter_overview(
      state.params, include_stats=False
    )
    logging.info("\n%s", table)
    if moe := routing(self._model.module, self._model.image_shape):
      logging.info("%s", moe.describe())
    logging.info("%s", describe_workers(self._config, self._data))

  def train(
    self, state: TrainState, stack: contextlib.ExitStack
  ) -> tuple[TrainState, bool]:
    """Runs the loop to the end of the run, or until it is asked to stop.

    Returns:
      The last state, and whether the run has finished.
    """
    spec, start_step = self._config.train, int(state.step)
    num_steps = self._training.num_steps
    described, evaluated, ended = self._has_metrics(start_step)
    if ended and described and evaluated:
      return state, True
    stop = stack.enter_context(Preemption())
    writer = MetricsWriter(
      self._workdir, start_step, spec.on_save_error, spec.trackers
    )
    stack.callback(writer.close)
    if not described:
      writer.write_scalars(start_step, self._sizes(state))
      writer.write_config(start_step, self._config.to_dict())
    put = functools.partial(to_global, self._model.mesh)
    stack.callback(close_workers)
    batches = Prefetcher(self._data.iterate(start_step), put)
    stack.callback(batches.close)
    stalls = StallWatch()
    stack.callback(stalls.close)
    profile = StepProfile(self._workdir, start_step, self._profile)
    stack.callback(profile.close)
    steps = StepsAhead(
      self._training.step,
      state,
      CollapseDetector(spec.health),
      Failures(self._workdir, self._metadata, self._training, self._data),
      spec.batches_ahead,
      self._metadata.skipped_steps,
      stalls.step_finished,
    )
    timetable = loop.Timetable(
      num_steps,
      spec.report_every,
      spec.evaluate_every,
      spec.save_every,
      evaluated=start_step if evaluated else start_step - 1,
    )
    on_evaluation = self._on_evaluation(start_step, stack)
    hooks = loop.Hooks(
      self._evaluators,
      self._save,
      on_evaluation,
      stop,
      writer,
      self._observers,
      stalls,
      profile,
    )
    state, is_finished = loop.train(steps, batches, timetable, hooks)
    self._check_saved(int(state.step))
    return state, is_finished

  def _on_evaluation(
    self, start_step: int, stack: contextlib.ExitStack
  ) -> Callable[[int, Any, dict[str, float]], dict[str, float]]:
    """`Hooks.on_evaluation`, which does nothing if no best model is kept."""
    spec = self._config.train
    if not spec.best.metric:
      return lambda step, variables, metrics: {}
    best = BestModel(self._workdir, start_step, spec.best, spec.on_save_error)
    stack.callback(best.close)
    return functools.partial(
      best.on_evaluation, metadata=self._metadata.to_dict()
    )

  def _has_metrics(self, step: int) -> tuple[bool, bool, bool]:
    """Whether the metrics file has sizes, the evaluation of a step, the end.

    The answer is the same on all hosts. A new run has no metrics and evaluates
    nothing before its first step.
    """
    if step == 0:
      return False, True, False
    found = np.zeros(3, bool)
    with hosts.raise_on_all_hosts():
      if jax.process_index() == 0:
        rows = [r for r in read_metrics(self._workdir) if r["step"] <= step]
        lengths = [r["num_steps"] for r in rows if "num_steps" in r]
        found[0] = lengths[-1:] == [self._training.num_steps]
        found[1] = is_evaluated(self._config.to_dict(), rows, step)
        found[2] = last_step(rows) == step
    if jax.process_count() > 1:
      found = multihost_utils.broadcast_one_to_all(found)
    return bool(found[0]), bool(found[1]), bool(found[2])

  def _sizes(self, state: TrainState) -> dict[str, float]:
    """Sizes of the model and the run, for tables."""
    model = self._model
    sizes = {
      "parameters": parameter_overview.count_parameters(state.params),
      "num_steps": self._training.num_steps,
      "flops_per_image": training_flops(model.module, model.image_shape),
    }
    if moe := routing(model.module, model.image_shape):
      sizes["capacity_factor"] = moe.capacity_factor
    return sizes

  def _save(self, step: int, state: TrainState, skipped: int) -> None:
    metadata = dataclasses.replace(self._metadata, skipped_steps=skipped)
    save = functools.partial(
      self._store.save,
      step,
      state.params,
      state.opt_state,
      metadata.to_dict(),
      router_state=state.router_state,
      ema=state.ema,
    )
    for action in (self._store.wait, save):  # The previous save, and this one.
      try:
        action()
      except (OSError, CheckpointError) as error:
        if self._config.train.on_save_error == "stop":
          raise
        logging.error("%s The run continues without it.", error)

  def _check_saved(self, step: int) -> None:
    """Verifies that the final checkpoint was saved."""
    try:
      self._store.wait()
    except CheckpointError as error:
      logging.error("%s", error)
    if self._store.latest_step() != step:
      raise CheckpointError(
        f"step {step}, the last one, could not be saved: see above. Free space "
        "or repair the file system, then run again: it resumes from step "
        f"{self._store.latest_step() or 0}."
      )
