"""Runs steps ahead of the devices and checks their outcome a few steps later.

A failed step freezes the state (`training.step`), so the steps after it change
nothing. A failure may therefore be noticed a few steps late: it is handled, and
the steps after it are rerun.

The batch of a step that waits for the devices is in their memory. So the number
of steps ahead is also the number of batches waiting in device memory.
"""

import collections
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vmoe_study.training.health import is_finite, is_watched
from vmoe_study.training.state import TrainState

Metrics = Mapping[str, Any]
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


class StepsAhead:
  """Runs the training step, a few steps ahead of its outcome.

  Attributes:
    state: state after all started steps; final only after `wait`.
    metrics: metrics of the last step known to have finished, as device arrays.
    skipped: number of skipped steps.
    watch: see `__init__`.
  """

  def __init__(
    self,
    train_step: TrainStep,
    state: TrainState,
    watch: Callable[[int, Metrics], None],
    on_failure: Callable[[int, TrainState, Any, Metrics], None],
    batches_ahead: int,
    skipped: int = 0,
    finished: Callable[[int], None] = lambda step: None,
  ):
    """Prepares to run steps, starting from `state`.

    Args:
      train_step: the compiled step, which donates the state.
      state: the initial state.
      watch: called with number and watched metrics of every step that did not
        fail.
      on_failure: called with number, state before the step, batch and metrics
        of a step that was not finite. It may raise to stop the run; otherwise
        the step is skipped.
      batches_ahead: number of steps that may wait, with their batches, for the
        step that runs.
      skipped: number of steps skipped before the start.
      finished: called with the number of every step that has ended.
    """
    self.state = state
    self.metrics: Metrics = {}
    self.skipped = skipped
    self._train_step = train_step
    self.watch, self._on_failure = watch, on_failure
    self._batches_ahead, self._finished = batches_ahead, finished
    self._waiting: collections.deque = collections.deque()

  def run(self, step: int, batch: Any) -> None:
    """Starts step `step` (from 0); waits for the oldest if too many wait."""
    self._start(step, batch)
    if len(self._waiting) > self._batches_ahead:
      self._finish()

  def wait(self) -> None:
    """Waits for all steps."""
    while self._waiting:
      self._finish()

  def _start(self, step: int, batch: Any) -> None:
    self.state, metrics = self._train_step(self.state, batch)
    self._waiting.append((step, batch, metrics))

  def _finish(self) -> None:
    step, batch, self.metrics = self._waiting.popleft()
    watched = {k: v for k, v in self.metrics.items() if is_watched(k)}
    watched = jax.device_get(watched)
    if is_finite(watched):
      self.watch(step + 1, watched)
    else:
      self._on_failure(step, self._state_before(step), batch, self.metrics)
      self._skip(step)
    self._finished(step + 1)

  def _skip(self, step: int) -> None:
    """Unfreezes the state and reruns the steps that found it frozen."""
    self.skipped += 1
    frozen, self._waiting = self._waiting, collections.deque()
    self.state = self._state_before(step + 1)
    for later, batch, _ in frozen:
      self._start(later, batch)

  def _state_before(self, step: int) -> TrainState:
    """The unfrozen state before step `step`."""
    put = functools.partial(jax.device_put, device=self.state.step.sharding)
    return self.state.replace(
      step=put(np.int32(step)), failed=put(np.bool_(False))
    )
