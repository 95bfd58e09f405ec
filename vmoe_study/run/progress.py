"""Progress messages of runs, as the commands show them."""

import logging as std_logging
import os


def log_progress() -> None:
  """Shows progress on stderr, one plain line each; of other packages warnings.

  The commands call it; in a notebook or script call it before `train`.

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


def _is_shown(entry: std_logging.LogRecord) -> bool:
  ours = f"{os.sep}vmoe_study{os.sep}" in entry.pathname
  return ours or entry.levelno >= std_logging.WARNING
