"""Steps run ahead of the devices, and are known to be sound some steps later.

Because a failed step freezes the state (`train.step`), a failure that is
noticed late can still be dealt with as if it had been noticed at once: the
steps after it have changed nothing, and are run again.
"""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vmoe_study.training.health import is_finite, is_watched
from vmoe_study.training.state import TrainState

# Steps that may wait for the devices: enough to keep them busy, and few enough
# for memory, as each holds a batch, and for JAX's CPU collectives, which lock
# up when more than 31 programs wait.
STEPS_AHEAD = 8

Metrics = Mapping[str, Any]
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


class StepsAhead:
  """Runs the training step, at most `STEPS_AHEAD` ahead of its outcome.

  Attributes:
    state: after the steps started; settled only after `settle`.
    metrics: on devices, of the last step that is known to have finished.
    skipped: how many steps were left out.
  """

  def __init__(
    self,
    train_step: TrainStep,
    state: TrainState,
    watch: Callable[[int, Metrics], None],
    on_failure: Callable[[int, TrainState, Any, Metrics], None],
    skipped: int = 0,
  ):
    """Prepares to run steps from this state on.

    Args:
      train_step: compiled; donates the state.
      state: to start from.
      watch: is given number and watched metrics of every sound step.
      on_failure: is given number, state before, batch and metrics of a step
        that was not finite; raises to stop, else the step is left out.
      skipped: steps that were left out before.
    """
    self.state = state
    self.metrics: Metrics = {}
    self.skipped = skipped
    self._train_step = train_step
    self._watch, self._on_failure = watch, on_failure
    self._waiting: collections.deque = collections.deque()

  def run(self, step: int, batch: Any) -> None:
    """Starts step `step`, from 0, and waits for one that is far behind it."""
    self._start(step, batch)
    if len(self._waiting) > STEPS_AHEAD:
      self._finish()

  def settle(self) -> None:
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
      self._watch(step + 1, watched)
    else:
      self._on_failure(step, self._at(step), batch, self.metrics)
      self._leave_out(step)

  def _leave_out(self, step: int) -> None:
    """Unfreezes the state, and runs the steps again that found it frozen."""
    self.skipped += 1
    frozen, self._waiting = self._waiting, collections.deque()
    self.state = self._at(step + 1)
    for later, batch, _ in frozen:
      self._start(later, batch)

  def _at(self, step: int) -> TrainState:
    sharding = self.state.step.sharding
    return self.state.replace(step=jax.device_put(np.int32(step), sharding))
