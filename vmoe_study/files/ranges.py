"""Reads files, or ranges of them, on any file system; retries and counts reads.

Object stores refuse requests when they are busy, close connections and truncate
responses. A failed range is therefore requested again, with growing pauses.
"""

import contextvars
import dataclasses
import random
import threading
import time

from vmoe_study.files.location import REMEDY, locate

ATTEMPTS = 6
FIRST_PAUSE = 0.5  # seconds; doubles each time.
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError)


@dataclasses.dataclass
class Traffic:
  """Counts the reads of `read_range` in the threads that report to this object.

  Attributes:
    requests: number of ranges, without retries.
    bytes: total size of these ranges.
  """

  requests: int = 0
  bytes: int = 0
  _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

  def count(self, size: int) -> None:
    """Counts a request."""
    with self._lock:
      self.requests += 1
      self.bytes += size


# What the reads of this thread count for.
TRAFFIC = contextvars.ContextVar("traffic", default=Traffic())  # noqa: B039


def read_range(url: str, start: int, stop: int) -> bytes:
  """Returns bytes [start, stop) of a file.

  Args:
    url: a local path, or a URL of any kind that fsspec knows.
    start: first byte of the range.
    stop: end of the range (exclusive); not beyond the end of the file.

  Raises:
    OSError: the file does not exist, or cannot be read after `ATTEMPTS`
      requests.
  """
  return _read(url, start, stop)


def read_file(url: str) -> bytes:
  """Returns a whole file; like `read_range`."""
  return _read(url, 0, None)


def _read(url: str, start: int, stop: int | None) -> bytes:
  filesystem, path = locate(url)
  for attempt in range(ATTEMPTS):
    if attempt:
      pause = FIRST_PAUSE * 2 ** (attempt - 1)
      time.sleep(pause * random.uniform(0.5, 1.5))
    try:
      data = filesystem.cat_file(path, start=start, end=stop)
    except FINAL:
      raise
    except Exception as error:  # Every store has its own types.
      problem: Exception | str = error
      continue
    if stop is None or len(data) == stop - start:
      TRAFFIC.get().count(len(data))
      return data
    problem = f"the answer has {len(data)} bytes"
  part = "" if stop is None else f", bytes {start} to {stop}"
  raise OSError(
    f"{url}{part}: {ATTEMPTS} requests failed, the last one "
    f"with: {problem}. {REMEDY}"
  )


def file_size(url: str) -> int:
  """Size of a file in bytes."""
  filesystem, path = locate(url)
  return int(filesystem.size(path))


def is_remote(url: str) -> bool:
  """Whether a path is a URL, so that every read takes a request."""
  return "://" in str(url)
