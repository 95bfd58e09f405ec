"""One run at a time in a workdir.

On a file system, the kernel's lock on `WORKDIR/.lock`: it dies with its
process, however that ends, so there is no stale lock. Object storage (gs://)
has no locks: there, a file `lock.json` that its owner rewrites every
`HEARTBEAT_SECONDS`. Who finds it waits until it has not changed for
`STALE_SECONDS`, as it will not after a kill -9. Of two starts at the same time
the one whose file was overwritten steps back; if they write more than
`SETTLE_SECONDS` apart without seeing each other, both run. A run that was
suspended for longer than `STALE_SECONDS`, and finds that another one has the
lock now, is interrupted.
"""

import _thread
import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

import jax
from absl import logging
from etils import epath

from vmoe_study.parallel import hosts

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 60.0
SETTLE_SECONDS = 3.0


@contextlib.contextmanager
def hold(workdir: epath.PathLike) -> Iterator[None]:
  """Keeps other runs out of a workdir, which it creates.

  Of a multi-host run, every process calls it, and the first one locks.

  Raises:
    ValueError: another run is in it.
    OSError: it cannot be created or written.
    OtherHostError: the first process has met one of these.
  """
  with contextlib.ExitStack() as stack:
    with hosts.raise_on_all_hosts():
      if jax.process_index() == 0:
        stack.enter_context(_lock(epath.Path(workdir)))
    yield


@contextlib.contextmanager
def _lock(workdir: epath.Path) -> Iterator[None]:
  lock = heartbeat_lock if "://" in str(workdir) else kernel_lock
  workdir.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(lock(workdir))
    except BlockingIOError as error:
      raise ValueError(
        f"workdir {workdir} is in use by another run{error}. Wait for its "
        "end, stop it, or choose another workdir."
      ) from None
    yield


def kernel_lock(workdir: epath.Path) -> contextlib.AbstractContextManager:
  """A lock of the operating system; BlockingIOError tells who has it."""
  file = open(workdir / ".lock", "a+")  # noqa: SIM115
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    owner = file.read().strip()
    file.close()
    raise BlockingIOError(f", {owner}" if owner else "") from None
  file.truncate(0)
  file.write(_owner())
  file.flush()
  return contextlib.closing(file)


@contextlib.contextmanager
def heartbeat_lock(workdir: epath.Path) -> Iterator[None]:
  """A file that shows signs of life; BlockingIOError tells whose."""
  path, token = workdir / "lock.json", uuid.uuid4().hex
  _wait_until_stale(path)
  _beat(path, token, 0)
  time.sleep(SETTLE_SECONDS)  # Another start may overwrite it.
  if _content(path).get("token") != token:
    raise BlockingIOError(f", {_content(path).get('owner')}")
  ended = threading.Event()

  def keep_alive():
    count = 0
    while not ended.wait(HEARTBEAT_SECONDS):
      count += 1
      try:
        if _is_lost(path, token):
          logging.error("%s is now held by %s.", path, _content(path))
          _thread.interrupt_main()
          return
        _beat(path, token, count)
      except Exception as error:
        logging.warning("%s cannot be written: %s", path, error)

  thread = threading.Thread(target=keep_alive, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
    if not _is_lost(path, token):
      path.unlink(missing_ok=True)


def _wait_until_stale(path: epath.Path) -> None:
  """Returns when nobody holds the lock; raises if somebody shows life."""
  found = _content(path)
  deadline = time.monotonic() + STALE_SECONDS
  if found:
    logging.info("%s is held by %s: waiting for a sign", path, found)
  while found and time.monotonic() < deadline:
    time.sleep(SETTLE_SECONDS)
    now = _content(path)
    if now and now != found:
      raise BlockingIOError(f", {now.get('owner')}")
    found = now


def _beat(path: epath.Path, token: str, count: int) -> None:
  content = {"owner": _owner(), "token": token, "count": count}
  path.write_text(json.dumps(content))


def _is_lost(path: epath.Path, token: str) -> bool:
  """Whether another run has taken the lock."""
  return _content(path).get("token", token) != token


def _content(path: epath.Path) -> dict:
  try:
    return json.loads(path.read_text())
  except (FileNotFoundError, json.JSONDecodeError):
    return {}


def _owner() -> str:
  return f"process {os.getpid()} on {socket.gethostname()}"
