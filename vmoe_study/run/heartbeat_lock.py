"""A lock for object stores, which have no locks of their own.

Lock files are numbered, WORKDIR/lock/000001.json and so on, and the one with
the highest number is the lock. Its owner rewrites it every `HEARTBEAT_SECONDS`.
A new run takes the lock by creating the file with the next number, once the
highest is marked as released or has not changed for `STALE_SECONDS`, as after a
kill -9. The highest file is never removed, so no number is used twice.

If several runs start at the same time, exactly one creates the file: gcsfs,
s3fs and adlfs make its absence a precondition of the request that writes it
(fsspec's `pipe_file(mode="create")`). Other file systems of fsspec first check
and then write. There, the last of several runs to write keeps the lock, and the
others are interrupted at their next heartbeat. A run that was suspended for
longer than `STALE_SECONDS` is interrupted too, if another has taken the lock.
"""

import contextlib
import ctypes
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from absl import logging

from vmoe_study.files.location import locate

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 60.0
POLL_SECONDS = 3.0
_NAME = re.compile(r"/(\d{6})\.json$")


@contextlib.contextmanager
def heartbeat_lock(workdir: str) -> Iterator[None]:
  """Holds the lock of a workdir, which is a URL or path that fsspec opens.

  Raises:
    BlockingIOError: another run holds it; the message names its owner.
    KeyboardInterrupt: in the main thread, if another run has taken it.
    ValueError: fsspec does not know this kind of URL.
  """
  files = _LockFiles(workdir)
  content = {"owner": owner(), "token": uuid.uuid4().hex}
  number = _wait_until_free(files) + 1
  with contextlib.suppress(FileExistsError):
    files.create(number, content)
  # Read even after FileExistsError: a retried request may find its own file.
  if (newest := files.newest()) != (number, content):
    raise BlockingIOError(_describe_owner(newest[1]))
  files.remove_below(number)
  ended = threading.Event()
  thread = threading.Thread(
    target=_keep_alive, args=(files, number, content, ended), daemon=True
  )
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
    try:
      if not _is_lost(files, number, content):
        files.overwrite(number, content | {"released": True})
    except Exception as error:
      logging.warning("The lock of %s was not released: %s", workdir, error)


def owner() -> str:
  """A description of this process, for messages in other processes."""
  return f"process {os.getpid()} on {socket.gethostname()}"


def _wait_until_free(files: "_LockFiles") -> int:
  """Waits until no run holds the lock; returns the highest number, or 0.

  Raises:
    BlockingIOError: the lock file changes, so its owner is alive.
  """
  number, found = files.newest()
  deadline = time.monotonic() + STALE_SECONDS
  if number and not found.get("released"):
    logging.info("The lock is held by %s: waiting for a heartbeat.", found)
  while number and not found.get("released") and time.monotonic() < deadline:
    time.sleep(POLL_SECONDS)
    before, (number, found) = (number, found), files.newest()
    if number and not found.get("released") and (number, found) != before:
      # A file that is being rewritten may be read as empty.
      raise BlockingIOError(
        _describe_owner(found) or _describe_owner(before[1])
      )
  return number


def _keep_alive(
  files: "_LockFiles",
  number: int,
  content: dict[str, Any],
  ended: threading.Event,
) -> None:
  """Rewrites the lock file; interrupts the main thread if the lock is lost."""
  heartbeats = 0
  while not ended.wait(HEARTBEAT_SECONDS):
    heartbeats += 1
    try:
      if _is_lost(files, number, content):
        logging.error("The lock is now held by %s.", files.newest())
        _interrupt_main_thread()
        return
      files.overwrite(number, content | {"heartbeats": heartbeats})
    except Exception as error:
      logging.warning("The heartbeat of the lock failed: %s", error)


def _interrupt_main_thread() -> None:
  """Raises KeyboardInterrupt in the main thread.

  `_thread.interrupt_main` would call the handler of Ctrl-C, which saves first.
  """
  ident = ctypes.c_ulong(threading.main_thread().ident)
  error = ctypes.py_object(KeyboardInterrupt)
  ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, error)


def _is_lost(files: "_LockFiles", number: int, content: dict[str, Any]) -> bool:
  """Whether another run has taken the lock."""
  newest, found = files.newest()
  token = content["token"]
  replaced = newest == number and found.get("token", token) != token
  return newest > number or replaced


def _describe_owner(content: dict[str, Any]) -> str:
  """The owner, to complete the message "in use by another run"."""
  return f", {content['owner']}" if "owner" in content else ""


class _LockFiles:
  """The numbered files of one lock."""

  def __init__(self, workdir: str):
    self._fs, self._folder = locate(f"{workdir.rstrip('/')}/lock")

  def newest(self) -> tuple[int, dict[str, Any]]:
    """The highest number and the content of its file; (0, {}) without files."""
    number = max(self._numbers(), default=0)
    return number, self._read(number) if number else {}

  def create(self, number: int, content: dict[str, Any]) -> None:
    """Writes a new file; object stores need no folder for it.

    Raises:
      FileExistsError: the file exists.
    """
    self._write(number, content, mode="create")

  def overwrite(self, number: int, content: dict[str, Any]) -> None:
    """Writes a file, whether it exists or not."""
    self._write(number, content, mode="overwrite")

  def remove_below(self, number: int) -> None:
    """Removes the files of earlier owners."""
    for other in self._numbers():
      if other < number:
        with contextlib.suppress(FileNotFoundError):
          self._fs.rm_file(self._path(other))

  def _numbers(self) -> list[int]:
    self._fs.invalidate_cache(self._folder)
    try:
      paths = self._fs.ls(self._folder, detail=False)
    except FileNotFoundError:
      return []
    return [int(match[1]) for path in paths if (match := _NAME.search(path))]

  def _write(self, number: int, content: dict[str, Any], mode: str) -> None:
    data = json.dumps(content).encode()
    self._fs.pipe_file(self._path(number), data, mode=mode)

  def _read(self, number: int) -> dict[str, Any]:
    try:
      return json.loads(self._fs.cat_file(self._path(number)))
    except (FileNotFoundError, ValueError):
      return {}  # Removed, or just being written.

  def _path(self, number: int) -> str:
    return f"{self._folder}/{number:06d}.json"
