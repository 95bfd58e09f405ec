"""Checks a command line of `python -m vmoe_study` without running it.

The launch scripts call this in the folder from which the hosts will run the
command. The exit code is 0 if the command line is valid, and `NOT_CHECKED` if
this Python lacks packages; stderr has the details.
"""

import os
import sys

OLDEST = (3, 11)
INVALID = 2
NOT_CHECKED = 3


def check(words):
  """Returns the exit code of `COMMAND --check ...`."""
  if sys.version_info < OLDEST:
    version = ".".join(map(str, sys.version_info[:2]))
    return _not_checked("it is Python " + version)
  os.environ["JAX_PLATFORMS"] = "cpu"
  sys.path[0] = ""  # The current folder comes first, as under `python -m`.
  try:
    from vmoe_study.cli.main import main

    return main([words[0], "--check", *words[1:]])
  except ImportError as error:
    if not (error.name or "").startswith("vmoe_study."):
      return _not_checked(error)
    # A module of the package is missing.
    sys.stderr.write(f"error: {error}. (TPU VMs get only what git tracks.)\n")
    return INVALID


def _not_checked(reason):
  sys.stderr.write(f"{sys.executable}: {reason}\n")
  return NOT_CHECKED


if __name__ == "__main__":
  sys.exit(check(sys.argv[1:]))
