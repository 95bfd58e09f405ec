"""Stopping on request: Ctrl-C, and SIGTERM before a preemption."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from vmoe_study.training.stop_signals import (
  StopRequested,
  handled_by,
  pass_on,
)


class Preemption(contextlib.AbstractContextManager):
  """Decides whether to stop after a step; all hosts get the same answer.

  A single process watches for SIGTERM and SIGINT itself, from entering to
  leaving the context. With several processes, JAX's coordination service
  watches each of them for SIGTERM and agrees with them on a step; SIGINT is
  turned into SIGTERM.

  A second SIGINT goes to the previous handler. Python's default handler raises
  KeyboardInterrupt.
  """

  def __enter__(self) -> "Preemption":
    self._asked = threading.Event()
    self._raises = False
    self._is_alone = jax.process_count() == 1
    handlers = {signal.SIGINT: self._on_interrupt}
    if self._is_alone:
      handlers[signal.SIGTERM] = self._request_stop
    self._stack = contextlib.ExitStack()
    self._before = self._stack.enter_context(handled_by(handlers))
    return self

  def __exit__(self, *error) -> None:
    self._stack.close()

  def __call__(self, step: int) -> bool:
    """Whether to stop after `step`; every process must ask after every step."""
    if self._is_alone:
      return self._asked.is_set()
    return multihost_utils.reached_preemption_sync_point(step)

  @contextlib.contextmanager
  def raised(self) -> Iterator[None]:
    """A request in this context raises StopRequested, in a single process."""
    self._raises = self._is_alone
    try:
      if self._raises and self._asked.is_set():
        raise StopRequested
      yield
    finally:
      self._raises = False

  def _on_interrupt(self, number: int, frame: Any) -> None:
    if self._asked.is_set():
      pass_on(self._before[signal.SIGINT], number, frame)
    elif self._is_alone:
      self._request_stop(number, frame)
    else:
      self._announce(number)
      os.kill(os.getpid(), signal.SIGTERM)

  def _request_stop(self, number: int, frame: Any) -> None:
    del frame
    if self._asked.is_set():
      return
    self._announce(number)
    if self._raises:
      raise StopRequested

  def _announce(self, number: int) -> None:
    self._asked.set()
    with contextlib.suppress(RuntimeError):  # It may interrupt another print.
      print(
        f"{signal.Signals(number).name}: saving, then stopping. Ctrl-C now "
        "stops at once, without saving.",
        file=sys.stderr,
        flush=True,
      )
