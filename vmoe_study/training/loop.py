"""The training loop: evaluate, save, fetch, step, report - in this order."""

import contextlib
import dataclasses
import datetime as dt
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging

from vmoe_study.training.ahead import Metrics, StepsAhead, TrainStep
from vmoe_study.training.health import HealthSpec, RouterWatch
from vmoe_study.training.metrics import MetricsWriter
from vmoe_study.training.state import TrainState


class Evaluator(Protocol):
  """Measures parameters on data of its own."""

  def run(self, params: Any) -> Iterable[tuple[str, float]]:
    """Yields names and values of metrics."""


@dataclasses.dataclass(frozen=True)
class Cadence:
  """How often things happen, in steps; 0 for never but at the end.

  Attributes:
    report: write training metrics and progress.
    evaluate: run all evaluators.
    save: write a checkpoint.
  """

  report: int
  evaluate: int
  save: int


class Batches(Protocol):
  """Device batches, fetched ahead."""

  wait_seconds: float

  def __next__(self) -> Any: ...


def train(
  state: TrainState,
  train_step: TrainStep,
  batches: Batches,
  *,
  start_step: int,
  skipped: int,
  num_steps: int,
  batch_size: int,
  cadence: Cadence,
  evaluators: Sequence[Evaluator],
  save: Callable[[int, TrainState, int], None],
  stop: Callable[[int], bool],
  writer: MetricsWriter,
  health: HealthSpec,
  on_failure: Callable[[int, TrainState, Any, Metrics], None],
) -> TrainState:
  """Trains from `start_step` to `num_steps`.

  Args:
    state: after `start_step` steps; its buffers are donated.
    train_step: compiled; batch n of `batches` is for step `start_step` + n.
    batches: an iterator that knows how long it was waited for.
    start_step: what is done already.
    skipped: how many of these steps were left out.
    num_steps: when to stop.
    batch_size: images per step, for the report.
    cadence: how often to report, evaluate and save.
    evaluators: run in turn.
    save: writes a checkpoint, given step, state and steps left out.
    stop: whether to save and stop after a step.
    writer: of the metrics.
    health: when to warn of routers, or to stop because of them.
    on_failure: see `StepsAhead`.

  Returns:
    The state after `num_steps` steps, or fewer if it was stopped.

  Raises:
    TrainingFailure: routers have collapsed, or as `on_failure` does.
  """
  watch = RouterWatch(health)
  ahead = StepsAhead(train_step, state, watch, on_failure, skipped)
  reporter = _Reporter(writer, batches, start_step, num_steps, batch_size)
  for step in range(start_step, num_steps + 1):
    if step > start_step:
      if _due(step, cadence.evaluate, num_steps):
        ahead.settle()
        with reporter.paused():
          evaluate(evaluators, ahead.state.params, step, writer)
      stopping = stop(step)
      if stopping or _due(step, cadence.save, num_steps):
        ahead.settle()
        with reporter.paused():
          save(step, ahead.state, ahead.skipped)
      if stopping or step == num_steps:
        break
    ahead.run(step, next(batches))
    if _due(step + 1, cadence.report, num_steps):
      ahead.settle()
      more = {"skipped_steps": ahead.skipped, **watch.metrics()}
      reporter.report(step + 1, {**ahead.metrics, **more})
  return ahead.state


def evaluate(
  evaluators: Sequence[Evaluator], params: Any, step: int, writer: MetricsWriter
) -> dict[str, float]:
  """Runs evaluators and writes what they found."""
  found = {}
  for evaluator in evaluators:
    start = time.perf_counter()
    metrics = dict(evaluator.run(params))
    seconds = time.perf_counter() - start
    shown = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
    logging.info("step %d: %s (%.1f s)", step, shown, seconds)
    found |= metrics
  if found:
    writer.write_scalars(step, found)
  return found


def _due(step: int, every: int, last: int) -> bool:
  return step == last or (every > 0 and step % every == 0)


class _Reporter:
  """Writes training metrics with speed, time to go and data waiting time."""

  def __init__(self, writer, batches, start_step, num_steps, batch_size):
    self._writer, self._batches = writer, batches
    self._num_steps, self._batch_size = num_steps, batch_size
    self._step, self._waited, self._training = start_step, 0.0, 0.0
    self._resumed = time.perf_counter()

  @contextlib.contextmanager
  def paused(self):
    """Time in this context does not count as training."""
    self._training += time.perf_counter() - self._resumed
    yield
    self._resumed = time.perf_counter()

  def report(self, step: int, metrics: dict[str, Any]) -> None:
    scalars = {k: v for k, v in metrics.items() if np.ndim(v) == 0}
    metrics = {k: float(v) for k, v in jax.device_get(scalars).items()}
    seconds = self._training + time.perf_counter() - self._resumed
    steps, self._step = step - self._step, step
    waited, self._waited = self._waited, self._batches.wait_seconds
    speed = {
      "images_per_second": steps * self._batch_size / seconds,
      "data_wait_share": (self._waited - waited) / seconds,
      "seconds": seconds,
    }
    left = (self._num_steps - step) * seconds / steps
    logging.info(
      "step %d/%d: loss %.4f, %.0f images/s, data wait %.0f%%, ETA %s",
      step,
      self._num_steps,
      metrics["loss"],
      speed["images_per_second"],
      100 * speed["data_wait_share"],
      dt.timedelta(seconds=round(left)),
    )
    train = {f"train/{k}": v for k, v in (metrics | speed).items()}
    self._writer.write_scalars(step, train)
    self._training, self._resumed = 0.0, time.perf_counter()
