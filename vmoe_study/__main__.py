"""The command line: `vmoe-study` and `python -m vmoe_study`."""

import os
import signal
import sys
from typing import Any

from vmoe_study.run.exit_codes import PREEMPTED


def main() -> int:
  """Runs the command of this process; returns its exit code."""
  before = {}
  if {"train", "sweep"} & set(sys.argv):  # Before imports that take long.
    requests = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, _stop) for number in requests}

  from vmoe_study.cli import main as commands

  code = commands.main()
  for number, handler in before.items():
    signal.signal(number, handler)
  return code


def _stop(number: int, frame: Any) -> None:
  """Responds to requests to stop until the command does so itself."""
  del number, frame
  os.write(2, b"Stopped before there was anything to save. Run it again.\n")
  os._exit(PREEMPTED)


if __name__ == "__main__":
  # With `-m`, Python looks for modules in the working directory, before all
  # others. Unless it holds this package, they may be someone else's.
  home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  if not sys.flags.safe_path and sys.path[0] != home:
    del sys.path[0]
  sys.exit(main())
