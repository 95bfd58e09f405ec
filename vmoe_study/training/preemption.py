"""Stopping on request: a SIGTERM, as clouds send before they take a machine."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Preemption:
  """Says whether to stop after a step: alike on all hosts, at the same step.

  A single process watches for SIGTERM itself. Of several processes, JAX's
  coordination service watches every one, and agrees with them on a step.
  """

  def __init__(self):
    self._asked = threading.Event()
    if jax.process_count() == 1:
      signal.signal(signal.SIGTERM, lambda *_: self._asked.set())

  def __call__(self, step: int) -> bool:
    """Whether to stop after `step`; every process asks after every step."""
    if jax.process_count() == 1:
      return self._asked.is_set()
    return multihost_utils.reached_preemption_sync_point(step)
