"""The lock of a workdir: one run at a time.

On a file system it is the kernel's lock on `WORKDIR/.lock`, which is released
when the process ends for any reason, so it never becomes stale. On object
stores (gs://, s3://) it consists of files and heartbeats, see
`heartbeat_lock.py`.
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
  """Creates a workdir and keeps other runs out of it.

  All processes of a multi-host run call it; process 0 holds the lock.

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
