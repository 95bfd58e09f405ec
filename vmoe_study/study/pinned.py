"""Runs a command pinned to CPU cores, which is terminated if its parent dies.

    python -m vmoe_study.study.pinned CORES PARENT COMMAND...

A sweep starts its runs through this program. Setting both properties between
fork and exec would be unsafe: the forked process lacks the other threads, such
as those of JAX, but their locks remain held.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def pinned_command(cores: set[int], words: list[str]) -> list[str]:
  """`words` as a command that is pinned to cores and bound to this process."""
  listed = ",".join(map(str, sorted(cores)))
  start = [sys.executable, "-m", "vmoe_study.study.pinned", listed]
  return [*start, str(os.getpid()), *words]


def main(cores: str, parent: str, *words: str) -> None:
  """Replaces this process with the command."""
  os.sched_setaffinity(0, map(int, cores.split(",")))
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
  if os.getppid() != int(parent):  # The parent died before the call above.
    sys.exit(1)
  os.execvp(words[0], words)


if __name__ == "__main__":
  main(*sys.argv[1:])
