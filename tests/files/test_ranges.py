"""Ranges of files on a file system with faults."""

import contextvars

import fsspec
import pytest

from vmoe_study.files import ranges
from vmoe_study.files.ranges import TRAFFIC, Traffic, file_size, read_range

DATA = bytes(range(100))


class Busy(Exception):
  """As stores raise it."""


@pytest.fixture
def store(monkeypatch):
  """A file in memory; `answers` are what the next reads do instead."""
  memory = fsspec.filesystem("memory")
  memory.pipe("/ranges/file", DATA)
  answers, read, pauses = [], memory.cat_file, []

  def cat_file(path, start=None, end=None):
    answer = answers.pop(0) if answers else None
    if isinstance(answer, Exception):
      raise answer
    return read(path, start=start, end=end)[:answer]

  monkeypatch.setattr(memory, "cat_file", cat_file)
  monkeypatch.setattr(ranges.time, "sleep", pauses.append)
  yield answers, pauses
  memory.rm("/ranges", recursive=True)


def test_a_read_that_fails_or_ends_early_is_repeated(store):
  answers, pauses = store
  answers += [Busy("429"), 5, ConnectionResetError("reset")]
  assert read_range("memory://ranges/file", 10, 30) == DATA[10:30]
  assert not answers and len(pauses) == 3
  assert pauses[0] < 1 < pauses[2]  # They grow.
  assert file_size("memory://ranges/file") == 100


def test_what_was_read_is_counted_once(store):
  answers, _ = store
  answers += [Busy("503")]
  traffic = Traffic()

  def read():
    TRAFFIC.set(traffic)
    read_range("memory://ranges/file", 0, 7)

  contextvars.copy_context().run(read)
  read_range("memory://ranges/file", 0, 9)  # Counts elsewhere.
  assert (traffic.requests, traffic.bytes) == (1, 7)


def test_there_is_an_end_to_patience(store):
  answers, pauses = store
  answers += [Busy("503")] * ranges.ATTEMPTS
  message = "file, bytes 0 to 5: 6 requests failed, the last one with: 503"
  with pytest.raises(OSError, match=message):
    read_range("memory://ranges/file", 0, 5)
  assert len(pauses) == ranges.ATTEMPTS - 1


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_what_will_not_change_is_not_repeated(error, store):
  answers, pauses = store
  answers.append(error("no"))
  with pytest.raises(error):
    read_range("memory://ranges/file", 0, 5)
  assert not pauses
