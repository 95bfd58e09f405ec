"""Stopping on request: SIGTERM, which clouds send before a preemption."""

import contextlib
import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preemption(contextlib.AbstractContextManager):
  """Tells whether to stop after a step; the same answer on all hosts.

  A single process watches for SIGTERM itself, from entering to leaving the
  context. With several processes, JAX's coordination service watches each of
  them and agrees with them on a step.
  """

  def __enter__(self) -> "Preemption":
    self._asked = threading.Event()
    self._is_alone = jax.process_count() == 1
    if self._is_alone:
      self._handler = signal.signal(
        signal.SIGTERM, lambda *_: self._asked.set()
      )
    return self

  def __exit__(self, *error) -> None:
    if self._is_alone:
      signal.signal(signal.SIGTERM, self._handler)

  def __call__(self, step: int) -> bool:
    """Whether to stop after `step`; every process asks after every step."""
    if self._is_alone:
      return self._asked.is_set()
    return multihost_utils.reached_preemption_sync_point(step)
