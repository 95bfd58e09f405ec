"""Indices of data files: where each record begins.

An index is an int64 array with the starts of a file's records and the end of
the last one. Records that are compressed together have the same start.

ArrayRecord files end with an index of their own. TFRecord files have none: they
are read once, in sequence. The index of a remote file is stored in a folder
`.offsets` next to the file, or elsewhere if that is read-only, so that one host
makes it for all. Every host keeps copies of the indices that it uses in its
cache folder.
"""

import contextlib
import hashlib
import os
import posixpath
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
from absl import logging

from vmoe_study.data import array_record_file
from vmoe_study.files.atomic import write_atomically
from vmoe_study.files.location import locate
from vmoe_study.files.ranges import file_size, is_remote, read_range

HEADER_BYTES = 12
FOOTER_BYTES = 4
SCAN_BYTES = 8 * 2**20  # Of one request of a scan.
FILE_THREADS = 16
FOLDER = ".offsets"
REMEDY = "Fetch or prepare it again."


class RecordError(ValueError):
  """A record, or the example in it, cannot be used."""


def masked_crc(data: bytes) -> int:
  """TFRecord's checksum: crc32c rotated by 15 bits, plus a constant."""
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record_length(header: bytes, where: str) -> int:
  """Returns the record length in a TFRecord header; verifies its checksum.

  Raises:
    RecordError: the checksum is wrong.
  """
  length, crc = struct.unpack("<QI", header)
  if masked_crc(header[:8]) != crc:
    raise RecordError(
      f"{where}: the checksum of the record's length is wrong, so the file is "
      f"damaged. {REMEDY}"
    )
  return length


Fetch = Callable[[int, int], bytes]


def scan_tfrecords(url: str) -> np.ndarray:
  """Scans the headers of a TFRecord file; a remote file is read completely.

  Returns:
    int64 (N + 1,): the start of each complete record, and the end of the last
    one. A record truncated by the end of the file is left out.

  Raises:
    RecordError: a header's checksum is wrong.
  """
  size = file_size(url)
  with contextlib.ExitStack() as stack:
    if is_remote(url):
      fetch = _sequential_reader(url, size)
    else:
      file = stack.enter_context(open(locate(url)[1], "rb"))
      fetch = lambda start, stop: os.pread(file.fileno(), stop - start, start)  # noqa: E731
    offsets = [0]
    while offsets[-1] + HEADER_BYTES <= size:
      start = offsets[-1]
      header = fetch(start, start + HEADER_BYTES)
      length = record_length(header, f"{url}, record {len(offsets) - 1}")
      end = start + HEADER_BYTES + length + FOOTER_BYTES
      if end > size:
        break
      offsets.append(end)
  return np.asarray(offsets, np.int64)


def _sequential_reader(url: str, size: int) -> Fetch:
  """Serves small reads at growing positions from one pass in large pieces."""
  pieces: dict[int, bytes] = {}

  def piece(number: int) -> bytes:
    if number not in pieces:
      for old in [n for n in pieces if n < number - 1]:
        del pieces[old]
      start = number * SCAN_BYTES
      pieces[number] = read_range(url, start, min(start + SCAN_BYTES, size))
    return pieces[number]

  def fetch(start: int, stop: int) -> bytes:
    first, last = start // SCAN_BYTES, (stop - 1) // SCAN_BYTES
    data = b"".join(piece(number) for number in range(first, last + 1))
    return data[start - first * SCAN_BYTES : stop - first * SCAN_BYTES]

  return fetch


def cache_dir() -> Path:
  """$XDG_CACHE_HOME/vmoe_study, by default ~/.cache/vmoe_study."""
  root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(root) / "vmoe_study"


def digest(text: str) -> str:
  """The first 32 digits of the SHA-256 of `text`."""
  return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_key(url: str) -> str:
  """A digest of a file's name, size and times, which changes with the file."""
  filesystem, path = locate(url)
  return digest(f"{url} {filesystem.ukey(path)}")


def tfrecord_index(url: str, fallback_folder: str | None = None) -> Path:
  """Returns this host's copy of the index of a TFRecord file.

  It comes from the cache folder, from the folder next to a remote file, from
  `fallback_folder`, or from a scan, whose result is then stored in the cache
  and in one of the other places.

  Args:
    url: the data file.
    fallback_folder: folder for the indices of read-only data.

  Raises:
    RecordError: a header's checksum is wrong.
  """
  key = file_key(url)
  target = cache_dir() / "offsets" / f"{key}.i64"
  if not target.exists():
    folders = [posixpath.join(posixpath.dirname(url), FOLDER)]
    folders += [fallback_folder] if fallback_folder else []
    shared = [posixpath.join(folder, f"{key}.i64") for folder in folders]
    shared = shared if is_remote(url) else []
    content = next(_stored(shared), None)
    if content is None:
      content = scan_tfrecords(url).tobytes()
      _store(shared, content)
    write_atomically(target, content)
  return target


def _stored(places: Sequence[str]) -> Iterator[bytes]:
  for place in places:
    filesystem, path = locate(place)
    with contextlib.suppress(Exception):  # Not there, or not readable.
      yield filesystem.cat_file(path)


def _store(places: Sequence[str], content: bytes) -> None:
  """Writes the content at the first place where this is possible."""
  for place in places:
    try:
      write_atomically(place, content)
      return
    except Exception as error:  # Every store has its own types of errors.
      logging.info("%s: cannot be written: %s", place, error)


def array_record_index(url: str) -> Path:
  """Returns this host's copy of the index of an ArrayRecord file.

  A file next to the copy, with the suffix `.tail`, has the bytes of the data
  file from the index to the end.
  """
  target = cache_dir() / "array_records" / f"{file_key(url)}.i64"
  if not target.exists():
    offsets, tail = array_record_file.read_index(url)
    write_atomically(target.with_suffix(".tail"), tail)
    write_atomically(target, offsets.tobytes())
  return target


def all_indices(make: Callable[[str], Path], urls: Sequence[str]) -> list[Path]:
  """Makes the indices of several files in several threads."""
  with ThreadPoolExecutor(FILE_THREADS) as pool:
    return list(pool.map(make, urls))
