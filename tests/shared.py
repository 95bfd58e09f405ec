"""What several test files use is made once, also by several workers."""

import fcntl
import pathlib
from collections.abc import Callable

import pytest


def make_once(
  factory: pytest.TempPathFactory,
  name: str,
  make: Callable[[pathlib.Path], None],
) -> pathlib.Path:
  """A folder that `make` fills, the same for all workers of a run of tests."""
  base = factory.getbasetemp()
  if base.name.startswith("popen-"):
    base = base.parent  # Of a worker's folder.
  folder = base / name
  with open(base / f"{name}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not folder.exists():
      making = base / f"{name}.making"
      make(making)
      making.rename(folder)
  return folder
