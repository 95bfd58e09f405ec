"""The training loop. Its order is: save, evaluate, fetch, step, report."""

import contextlib
import dataclasses
import datetime as dt
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging

from vmoe_study.console.progress import Progress
from vmoe_study.training.health import LOAD
from vmoe_study.training.metrics import MetricsWriter
from vmoe_study.training.metrics_file import STOPPED_EARLY
from vmoe_study.training.profile import NO_PROFILE, StepProfile
from vmoe_study.training.stalls import StallWatch
from vmoe_study.training.state import TrainState
from vmoe_study.training.steps_ahead import StepsAhead
from vmoe_study.training.stop_signals import StopRequested


class Evaluator(Protocol):
  """Measures a model on its own data."""

  def run(self, variables: Any, step: int) -> Iterable[tuple[str, float]]:
    """Yields names and values of metrics of the parameters after a step."""


class Observer(Protocol):
  """Writes pictures and distributions that show what a model does."""

  def observe(self, step: int, variables: Any, writer: MetricsWriter) -> None:
    """Writes pictures and distributions for the variables after a step."""


class BatchStream(Protocol):
  """An iterator of device batches that measures how long the loop waits."""

  wait_seconds: float

  def __next__(self) -> Any: ...


class StopRequests(Protocol):
  """Reports whether the run was asked to stop."""

  def __call__(self, step: int) -> bool:
    """Whether to save and stop after a step."""

  def raised(self) -> contextlib.AbstractContextManager[None]:
    """A context in which a request may raise StopRequested."""


@dataclasses.dataclass(frozen=True)
class Timetable:
  """When to report, evaluate and save, in steps; interval 0: at the end only.

  Attributes:
    num_steps: number of steps of the run.
    report: interval of training metrics and progress messages.
    evaluate: interval of evaluations.
    save: interval of checkpoints; every evaluation is also preceded by one.
    evaluated: the last step that was evaluated before this start.
  """

  num_steps: int
  report: int
  evaluate: int
  save: int
  evaluated: int = 0

  def is_due(self, step: int, interval: int) -> bool:
    """Whether something with this interval is due after `step` steps."""
    at_end = step == self.num_steps
    return at_end or (interval > 0 and step % interval == 0)


@dataclasses.dataclass(frozen=True)
class Hooks:
  """The callbacks of the loop.

  Attributes:
    evaluators: run one after another at every evaluation.
    save: writes a checkpoint, given the step, the state and the number of
      skipped steps.
    on_evaluation: called with step, variables and metrics of an evaluation
      before these are written; returns further metrics, among them
      `STOPPED_EARLY` if training ends here.
    stop: see `StopRequests`.
    writer: writer of all metrics.
    observers: called after every evaluation.
    stalls: detects hanging steps; the loop reports pauses to it, and
      `StepsAhead` reports steps.
    profile: the trace of some steps.
  """

  evaluators: Sequence[Evaluator]
  save: Callable[[int, TrainState, int], None]
  on_evaluation: Callable[[int, Any, dict[str, float]], dict[str, float]]
  stop: StopRequests
  writer: MetricsWriter
  observers: Sequence[Observer] = ()
  stalls: StallWatch = dataclasses.field(default_factory=StallWatch)
  profile: StepProfile = NO_PROFILE


def train(
  steps: StepsAhead, batches: BatchStream, timetable: Timetable, hooks: Hooks
) -> tuple[TrainState, bool]:
  """Trains from the step of `steps.state` to the end of the timetable.

  Every state is saved before it is evaluated: if the evaluation is interrupted,
  the resumed run evaluates this state first. The last state is also saved if
  the next batch raises an error, unless the run has several hosts.

  Args:
    steps: the compiled step with the state to start from; batch n of `batches`
      is for the n-th step that it runs.
    batches: device batches.
    timetable: when to report, evaluate, save and end.
    hooks: the callbacks.

  Returns:
    The last state, which is saved, and whether the run has finished: it
    completed the timetable, with its last evaluation, or stopped early. If not,
    it was asked to stop.

  Raises:
    TrainingFailure: routers have collapsed, or `steps.on_failure` raised it.
  """
  start_step, num_steps = int(steps.state.step), timetable.num_steps
  # The reporter logs the progress.
  with Progress("training", num_steps, "steps", start_step, math.inf) as bar:
    reporter = _Reporter(hooks.writer, batches, start_step, num_steps, bar)
    stopping = _run(steps, batches, timetable, hooks, reporter)
  return steps.state, not stopping


def _run(
  steps: StepsAhead,
  batches: BatchStream,
  timetable: Timetable,
  hooks: Hooks,
  reporter: "_Reporter",
) -> bool:
  """The loop of `train`; returns whether the run was asked to stop."""
  start_step, profile = int(steps.state.step), hooks.profile

  @contextlib.contextmanager
  def paused():
    with reporter.paused(), hooks.stalls.paused():
      yield

  for step in range(start_step, timetable.num_steps + 1):
    evaluating = timetable.is_due(step, timetable.evaluate)
    evaluating &= step > timetable.evaluated
    ending = step == timetable.num_steps
    stopping = step > start_step and hooks.stop(step)
    saving = stopping or evaluating or timetable.is_due(step, timetable.save)
    if profile.is_over(step, saving or evaluating):
      steps.wait()
      with paused():
        profile.end(step)
    if saving and step > start_step:
      steps.wait()
      with paused():
        hooks.save(step, steps.state, steps.skipped)
    if evaluating and not stopping:
      with paused():
        found = _evaluate(hooks, steps.state.variables, step)
      stopping = found is None
      ending |= found is not None and STOPPED_EARLY in found
    if stopping or ending:
      break
    if step == profile.start:
      steps.wait()
      with paused():
        profile.begin()
    try:
      batch = next(batches)
    except Exception:
      # The other hosts of a run are in this step, and would not save with it.
      if step > start_step and not saving and jax.process_count() == 1:
        steps.wait()
        with paused():
          hooks.save(step, steps.state, steps.skipped)
      raise
    with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
      steps.run(step, reporter.counted(batch))
    if timetable.is_due(step + 1, timetable.report):
      steps.wait()
      more = {"skipped_steps": steps.skipped, **steps.watch.metrics()}
      reporter.report(step + 1, {**steps.metrics, **more})
  return stopping


def _evaluate(
  hooks: Hooks, variables: Any, step: int
) -> dict[str, float] | None:
  """Writes the metrics of all evaluators; returns None if asked to stop."""
  found: dict[str, float] = {}
  try:
    with hooks.stop.raised():
      for evaluator in hooks.evaluators:
        found |= _measure(evaluator, variables, step)
  except StopRequested:
    return None
  found |= hooks.on_evaluation(step, variables, found)
  if found:
    hooks.writer.write_scalars(step, found)
  for observer in hooks.observers:
    observer.observe(step, variables, hooks.writer)
  return found


def _measure(
  evaluator: Evaluator, variables: Any, step: int
) -> dict[str, float]:
  start = time.perf_counter()
  metrics = dict(evaluator.run(variables, step))
  seconds = time.perf_counter() - start
  shown = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
  logging.info("step %d: %s (%.1f s)", step, shown, seconds)
  return metrics


BOTTLENECK = 0.1  # Share of the time that steps wait for batches.
BOTTLENECK_NOTE = " (the input is the bottleneck: see `bench input`)"


class _Reporter:
  """Writes training metrics, with speed, data wait and remaining time."""

  def __init__(self, writer, batches, start_step, num_steps, bar):
    self._writer, self._batches, self._num_steps = writer, batches, num_steps
    self._bar = bar
    self._step, self._images = start_step, 0
    self._waited, self._training = 0.0, 0.0
    self._resumed = time.perf_counter()

  @contextlib.contextmanager
  def paused(self):
    """Time in this context does not count as training."""
    self._training += time.perf_counter() - self._resumed
    yield
    self._resumed = time.perf_counter()

  def counted(self, batch: Any) -> Any:
    """Counts a step and the images of its batch, and returns the batch."""
    self._bar.advance()
    self._images += len(jax.tree.leaves(batch)[0])
    return batch

  def report(self, step: int, metrics: dict[str, Any]) -> None:
    loads = {f"train/{k}": v for k, v in metrics.items() if k.endswith(LOAD)}
    if loads:
      self._writer.write_histograms(step, jax.device_get(loads))
    scalars = {k: v for k, v in metrics.items() if np.ndim(v) == 0}
    metrics = {k: float(v) for k, v in jax.device_get(scalars).items()}
    seconds = self._training + time.perf_counter() - self._resumed
    steps, self._step = step - self._step, step
    waited, self._waited = self._waited, self._batches.wait_seconds
    images, self._images = self._images, 0
    speed = {
      "images_per_second": images / seconds,
      "data_wait_share": (self._waited - waited) / seconds,
      "seconds": seconds,
    }
    self._bar.advance(0, f"loss {metrics['loss']:.4f}")
    left = (self._num_steps - step) * seconds / steps
    logging.info(
      "step %d/%d: loss %.4f, %.0f images/s, data wait %.0f%%%s, ETA %s",
      step,
      self._num_steps,
      metrics["loss"],
      speed["images_per_second"],
      100 * speed["data_wait_share"],
      BOTTLENECK_NOTE if speed["data_wait_share"] > BOTTLENECK else "",
      dt.timedelta(seconds=round(left)),
    )
    train = {f"train/{k}": v for k, v in (metrics | speed).items()}
    self._writer.write_scalars(step, train)
    self._training, self._resumed = 0.0, time.perf_counter()
