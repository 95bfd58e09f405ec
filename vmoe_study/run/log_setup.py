"""Logging of progress messages, as the commands show them."""

import logging as std_logging
import os
import traceback
import types

_ORBAX = f"{os.sep}orbax{os.sep}"


def log_progress() -> None:
  """Logs progress, and warnings of other packages, to stderr in plain lines.

  Messages of Orbax are not shown, because it also raises its errors with the
  same text.

  The commands call this function; in a notebook or script, call it before
  `train`.

  >>> log_progress()
  """
  from absl import flags, logging

  flags.FLAGS.mark_as_parsed()  # absl's loggers ask for absl's flags.
  logging.use_absl_handler()
  logging.set_verbosity(logging.INFO)
  handler = logging.get_absl_handler()
  if not any(found is _is_shown for found in handler.filters):
    handler.addFilter(_is_shown)
  handler.setFormatter(
    std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
  )


def is_from_orbax(trace: types.TracebackType | None) -> bool:
  """Whether an error comes from Orbax, which raises it in the foreground."""
  return any(_ORBAX in frame.filename for frame in traceback.extract_tb(trace))


def _is_shown(entry: std_logging.LogRecord) -> bool:
  trace = entry.exc_info[2] if entry.exc_info else None
  if _ORBAX in entry.pathname or is_from_orbax(trace):
    return False
  ours = f"{os.sep}vmoe_study{os.sep}" in entry.pathname
  return ours or entry.levelno >= std_logging.WARNING
