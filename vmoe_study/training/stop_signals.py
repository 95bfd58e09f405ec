"""Handlers of requests to stop: SIGINT (Ctrl-C) and SIGTERM (schedulers)."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Handler = Callable[[int, Any], Any]
REQUESTED = threading.Event()  # Whether the running command was asked to stop.


class StopRequested(KeyboardInterrupt):
  """A run or command was asked to stop when it had nothing to save."""


def raise_request() -> None:
  """Raises StopRequested."""
  REQUESTED.set()
  raise StopRequested


@contextlib.contextmanager
def handled_by(
  handlers: Mapping[signal.Signals, Handler],
) -> Iterator[dict[signal.Signals, Any]]:
  """Installs signal handlers, and restores the previous ones at the end.

  Yields the previous handlers. Outside of the main thread it does nothing, as
  signals cannot be handled there.

  Raises:
    StopRequested: `raise_request` raised it earlier, where Python ignores
      exceptions, such as in a callback of the garbage collector.
  """
  if REQUESTED.is_set():
    raise StopRequested
  before: dict[signal.Signals, Any] = {}
  if threading.current_thread() is threading.main_thread():
    before = {n: signal.signal(n, handler) for n, handler in handlers.items()}
  try:
    yield before
  finally:
    for number, handler in before.items():
      if handler is not None:  # None: it was not installed from Python.
        signal.signal(number, handler)


def pass_on(before: Any, number: int, frame: Any) -> None:
  """Calls the previous handler; if there is none, raises KeyboardInterrupt."""
  handler = before if callable(before) else signal.default_int_handler
  handler(number, frame)
