"""Runs a command on its share of the cores, and not longer than its parent.

    python -m vmoe_study.cli.tied CORES PARENT COMMAND...

`sweep` starts its runs through this program: code between fork and exec would
run in a copy of a process whose other threads, JAX's among them, are gone.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def command(cores: set[int], words: list[str]) -> list[str]:
  """`words`, tied to these cores and to this process."""
  listed = ",".join(map(str, sorted(cores)))
  start = [sys.executable, "-m", "vmoe_study.cli.tied", listed]
  return [*start, str(os.getpid()), *words]


def main(cores: str, parent: str, *words: str) -> None:
  """Becomes the command."""
  os.sched_setaffinity(0, map(int, cores.split(",")))
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
  if os.getppid() != int(parent):  # It died before it was tied to.
    sys.exit(1)
  os.execvp(words[0], words)


if __name__ == "__main__":
  main(*sys.argv[1:])
