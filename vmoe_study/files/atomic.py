"""Atomic writes: readers see a complete file or none."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import IO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from vmoe_study.files.location import locate

Path = str | os.PathLike[str]


def write_atomically(path: Path, content: str | bytes) -> None:
  """Creates or replaces a file, and creates its parent folders.

  Args:
    path: a local path, or a URL that fsspec opens.
    content: bytes, or text to be stored as UTF-8.

  Raises:
    OSError: the file cannot be written; an existing file is unchanged.
    ValueError: fsspec does not know this kind of URL.
  """
  with open_atomically(path) as file:
    file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def open_atomically(path: Path) -> Iterator[IO[bytes]]:
  """Opens a binary file that becomes `path` when the block ends.

  If the block raises, the new file is removed and `path` is unchanged. Use this
  for large content that is written piece by piece, otherwise
  `write_atomically`.
  """
  path = os.fspath(path)
  # An absolute path, as fsspec would expand a leading "~".
  fs, target = locate(path if "://" in path else os.path.abspath(path))
  unfinished = f"{target}.{uuid.uuid4().hex}.part"
  try:
    with _create(fs, unfinished) as file:
      yield file
    # fsspec's `mv` would put a local file into a folder of that name.
    move = os.replace if isinstance(fs, LocalFileSystem) else fs.mv
    move(unfinished, target)
  finally:
    if fs.exists(unfinished):
      fs.rm(unfinished)


def _create(fs: fsspec.AbstractFileSystem, path: str) -> IO[bytes]:
  """Opens a new file; creates its folder on file systems that have folders.

  Object stores have none, and creating one takes permissions that writing a
  file does not.
  """
  try:
    return fs.open(path, "wb")
  except FileNotFoundError:
    fs.makedirs(os.path.dirname(path), exist_ok=True)
    return fs.open(path, "wb")
