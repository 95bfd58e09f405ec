"""Silences Python's reports of errors in Orbax's threads and coroutines.

Orbax raises the same errors in the foreground, where they become one sentence.
Without the filters, a full disk or a damaged file would add hundreds of lines.
"""

import logging
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

from vmoe_study.run.log_setup import is_from_orbax


def silence_background_errors() -> None:
  """Installs the filters in this process."""
  sys.unraisablehook = without_orbax(sys.unraisablehook)
  threading.excepthook = without_orbax(threading.excepthook)
  warnings.filterwarnings("ignore", "coroutine .* was never awaited")
  # Futures whose error nobody has asked for when the process ends.
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def without_orbax(hook: Callable[[Any], Any]) -> Callable[[Any], None]:
  """Wraps a hook for errors so that it ignores those of Orbax."""

  def filtered(found: Any) -> None:
    # A read or write of TensorStore has ended after Orbax's loop.
    is_late = str(found.exc_value) == "Event loop is closed"
    if not (is_late or is_from_orbax(found.exc_traceback)):
      hook(found)

  return filtered
