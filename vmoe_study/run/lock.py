"""One run at a time in a workdir.

On a file system, the kernel's lock on `WORKDIR/.lock`: it ends with its
process, however that ends, so there is no stale lock. On object storage (gs://,
s3://), files and heartbeats, see `heartbeat_lock.py`.
"""

import contextlib
import fcntl
from collections.abc import Iterator

import jax
from etils import epath

from vmoe_study.parallel import hosts
from vmoe_study.run.heartbeat_lock import heartbeat_lock, owner


@contextlib.contextmanager
def hold(workdir: epath.PathLike) -> Iterator[None]:
  """Keeps other runs out of a workdir, which it creates.

  All processes of a multi-host run call it; the first one holds the lock.

  Raises:
    ValueError: another run holds it.
    OSError: the workdir cannot be created or written.
    OtherHostError: one of these was raised in the first process.
  """
  with contextlib.ExitStack() as stack:
    with hosts.raise_on_all_hosts():
      if jax.process_index() == 0:
        stack.enter_context(_lock(epath.Path(workdir)))
    yield


@contextlib.contextmanager
def _lock(workdir: epath.Path) -> Iterator[None]:
  workdir.mkdir(parents=True, exist_ok=True)
  remote = "://" in str(workdir)
  lock = heartbeat_lock(str(workdir)) if remote else kernel_lock(workdir)
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(lock)
    except BlockingIOError as error:
      raise ValueError(
        f"workdir={workdir}: in use by another run{error}. Wait for its end, "
        "stop it, or choose another workdir."
      ) from None
    yield


@contextlib.contextmanager
def kernel_lock(workdir: epath.Path) -> Iterator[None]:
  """Holds a lock of the operating system.

  Raises:
    BlockingIOError: another process holds it; the message names it.
  """
  with open(workdir / ".lock", "a+") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      holder = file.read().strip()
      raise BlockingIOError(f", {holder}" if holder else "") from None
    file.truncate(0)
    file.write(owner())
    file.flush()
    yield
