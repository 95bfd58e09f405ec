"""Handling of SIGINT and SIGTERM in resumable commands."""

import contextlib
import os
import signal
import sys
from typing import Any

from vmoe_study.run.exit_codes import INTERRUPTED
from vmoe_study.training.stop_signals import (
  REQUESTED,
  StopRequested,
  handled_by,
  raise_request,
)


class StopHandler(contextlib.AbstractContextManager):
  """Ends a command at a signal, unless the command handles signals itself.

  The first signal raises StopRequested, and the second one ends the process at
  once. This also holds if the first went to a handler that was installed later:
  that of the training loop, for example, passes on the second.

  Attributes:
    requested: whether StopRequested was raised, even if an interrupted library
      turned it into another error.
  """

  requested = False

  def __enter__(self) -> "StopHandler":
    REQUESTED.clear()
    numbers = (signal.SIGINT, signal.SIGTERM)
    self._stack = contextlib.ExitStack()
    self._stack.enter_context(handled_by(dict.fromkeys(numbers, self._handle)))
    self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
    return self

  def __exit__(self, *error) -> None:
    sys.unraisablehook = self._hook
    self._stack.close()
    REQUESTED.clear()

  def _handle(self, number: int, frame: Any) -> None:
    del frame
    if self.requested or signal.getsignal(number) != self._handle:
      os.write(2, b"Stopped at once.\n")  # May interrupt a print.
      os._exit(INTERRUPTED)  # Not waiting for threads that save.
    self.requested = True
    raise_request()

  def _unraisable(self, found: Any) -> None:
    """Hides StopRequested where Python ignores it; `handled_by` raises it."""
    if not isinstance(found.exc_value, StopRequested):
      self._hook(found)
