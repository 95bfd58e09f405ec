"""Silences what Python says of errors in threads and coroutines of Orbax.

Orbax raises these errors in the foreground, too, where they become one
sentence. A full disk or a damaged file would otherwise add hundreds of lines.
"""

import logging
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

from vmoe_study.run.progress import is_from_orbax


def silence_background_errors() -> None:
  """Installs filters in this process."""
  sys.unraisablehook = _filtered(sys.unraisablehook)
  threading.excepthook = _filtered(threading.excepthook)
  warnings.filterwarnings("ignore", "coroutine .* was never awaited")
  # Of futures whose error nobody has asked for when the process ends.
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _filtered(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
  """The hook, but not for errors of Orbax."""

  def filtered(found: Any) -> None:
    # A read or write of TensorStore has ended after Orbax's loop.
    is_late = str(found.exc_value) == "Event loop is closed"
    if not (is_late or is_from_orbax(found.exc_traceback)):
      hook(found)

  return filtered
