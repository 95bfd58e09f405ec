"""Random access to the records of TFRecord and ArrayRecord files.

A TFRecord file is a sequence of records, each of
    length (uint64), masked crc32c of length (uint32),
    data (`length` bytes), masked crc32c of data (uint32),
all little-endian. It has no index, so all headers are read once, and the
offsets of the records are stored as int64 in a file of the cache folder. To
read a record is then one ranged read, on a local disk or a remote store.
"""

import dataclasses
import hashlib
import os
import resource
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import google_crc32c
import numpy as np
from absl import logging

from vmoe_study.files.atomic import write_atomically
from vmoe_study.files.location import locate

HEADER_BYTES = 12
FOOTER_BYTES = 4
FILE_THREADS = 16
REMEDY = "Fetch or prepare it again."


class RecordError(ValueError):
  """A record, or the example in it, cannot be used."""


def masked_crc(data: bytes) -> int:
  """TFRecord's checksum: crc32c rotated by 15 bits, plus a constant."""
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _length(header: bytes, where: str) -> int:
  """Returns the record length in a header; verifies its checksum."""
  length, crc = struct.unpack("<QI", header)
  if masked_crc(header[:8]) != crc:
    raise RecordError(
      f"{where}: the checksum of the record's length is wrong, so the file is "
      f"damaged. {REMEDY}"
    )
  return length


def scan_offsets(
  filesystem: fsspec.AbstractFileSystem, path: str
) -> np.ndarray:
  """Reads the record headers of one TFRecord file.

  Args:
    filesystem: any fsspec file system.
    path: the file's path on it.

  Returns:
    int64 (N + 1,): the start of each complete record, and the end of the last
    one. A record that the end of the file truncates is left out.

  Raises:
    RecordError: a header's checksum is wrong.
  """
  offsets = [0]
  with filesystem.open(path, "rb") as file:
    size = file.seek(0, os.SEEK_END)
    while offsets[-1] + HEADER_BYTES <= size:
      file.seek(offsets[-1])
      where = f"{path}, record {len(offsets) - 1}"
      length = _length(file.read(HEADER_BYTES), where)
      end = offsets[-1] + HEADER_BYTES + length + FOOTER_BYTES
      if end > size:
        break
      offsets.append(end)
  return np.asarray(offsets, np.int64)


def cache_dir() -> Path:
  """$XDG_CACHE_HOME/vmoe_study, by default ~/.cache/vmoe_study."""
  root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  return Path(root) / "vmoe_study"


def digest(text: str) -> str:
  """The first 32 digits of the SHA-256 of `text`."""
  return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_key(url: str) -> str:
  """A digest of a file's name, size and times; changes with the file."""
  filesystem, path = locate(url)
  return digest(f"{url} {filesystem.ukey(path)}")


def offset_index(url: str) -> Path:
  """Returns the file of offsets of a TFRecord file, written on first use."""
  target = cache_dir() / "offsets" / f"{file_key(url)}.i64"
  if not target.exists():
    write_atomically(target, scan_offsets(*locate(url)).tobytes())
  return target


@dataclasses.dataclass(frozen=True)
class FileSpan:
  """Records [skip, skip + take) of one file (a path or URL)."""

  filename: str
  skip: int
  take: int


class Records:
  """The records of several file spans, as one sequence of bytes."""

  def __init__(self, spans: Sequence[FileSpan]):
    """Takes spans in order, as `FileSpan` or with the same attributes."""
    self._spans = list(spans)
    self._starts = np.cumsum([0, *(span.take for span in spans)])

  def __len__(self) -> int:
    return int(self._starts[-1])

  def locate(self, index: int) -> tuple[int, int]:
    """Returns (number of the span, number of the record in its file)."""
    shard = int(np.searchsorted(self._starts, index, side="right")) - 1
    record = index - int(self._starts[shard]) + self._spans[shard].skip
    return shard, record

  def where(self, index: int) -> str:
    """File and number of record `index`, for error messages."""
    shard, record = self.locate(index)
    return f"{self._spans[shard].filename}, record {record}"

  def file_ends(self) -> np.ndarray:
    """Indices of the last record of each span; lost if a file is truncated."""
    return self._starts[1:] - 1

  def key(self) -> str:
    """A digest of the files' names, sizes and times, and of the spans."""
    with ThreadPoolExecutor(FILE_THREADS) as pool:
      keys = list(pool.map(file_key, [str(s.filename) for s in self._spans]))
    parts = zip(keys, self._spans, strict=True)
    return digest(" ".join(f"{k}[{s.skip}:+{s.take}]" for k, s in parts))

  def __getitem__(self, index: int) -> bytes:
    raise NotImplementedError


class TfRecords(Records):
  """Records of TFRecord files on any file system that fsspec knows.

  Pickled objects are small, as the offsets stay in their files.
  """

  def __init__(self, spans: Sequence[FileSpan]):
    """Opens the offset index of every file, or writes it."""
    super().__init__(spans)
    with ThreadPoolExecutor(FILE_THREADS) as pool:
      self._offsets = list(pool.map(offset_index, [s.filename for s in spans]))
    logging.info("offset index ready for %d record files", len(spans))

  def __getitem__(self, index: int) -> bytes:
    """Returns the data of one record; verifies its checksums.

    Raises:
      RecordError: the record is damaged or truncated.
    """
    shard, record = self.locate(index)
    where = self.where(index)
    span = np.fromfile(self._offsets[shard], np.int64, 2, offset=8 * record)
    if len(span) < 2:
      raise RecordError(
        f"{where}: the file is truncated and ends before this record. {REMEDY}"
      )
    filesystem, path = locate(self._spans[shard].filename)
    raw = filesystem.cat_file(path, start=int(span[0]), end=int(span[1]))
    length = _length(raw[:HEADER_BYTES], where)
    data = raw[HEADER_BYTES : HEADER_BYTES + length]
    if masked_crc(data) != int.from_bytes(raw[-FOOTER_BYTES:], "little"):
      raise RecordError(
        f"{where}: the checksum of the data is wrong, so the file is damaged. "
        f"{REMEDY}"
      )
    return data


RESERVED_FILES = 200  # For the rest of the process.
ENOUGH_FILES = 16_384  # For several data sets at once.


def allow_open_files(count: int) -> None:
  """Raises the limit of open files of this process as far as allowed.

  Worker processes inherit it.

  Raises:
    OSError: even so, `count` files are too many.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  unlimited = resource.RLIM_INFINITY
  wanted = max(count + RESERVED_FILES, ENOUGH_FILES)
  if hard != unlimited:
    wanted = min(wanted, hard)
  if soft != unlimited and soft < wanted:
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft = wanted
  if soft != unlimited and soft < count + RESERVED_FILES:
    raise OSError(
      f"{count} record files: this process may open {soft} at most. Raise the "
      f"limit with `ulimit -Hn`, to {count + RESERVED_FILES} or more."
    )


class ArrayRecords(Records):
  """Records of ArrayRecord files on local disks, which are kept open."""

  def __init__(self, spans: Sequence[FileSpan]):
    """Raises ValueError if a file is not on a local path."""
    super().__init__(spans)
    for span in spans:
      if "://" in str(span.filename):
        raise ValueError(
          f"{span.filename}: ArrayRecord files must be on a local path. Mount "
          "the bucket, or prepare the data set as TFRecord."
        )
    allow_open_files(len(spans))
    from grain.sources import ArrayRecordDataSource  # Slow to import.

    self._source = ArrayRecordDataSource(
      [f"{s.filename}[{s.skip}:{s.skip + s.take}]" for s in spans]
    )

  def __getitem__(self, index: int) -> bytes:
    """Returns the data of one record.

    Raises:
      RecordError: the record is damaged.
    """
    try:
      return self._source[index]
    except (ValueError, RuntimeError, IndexError) as error:
      if "Too many open files" in str(error):  # The record is not damaged.
        raise OSError(
          f"{self.where(index)}: {error}. Raise the limit with `ulimit -n`."
        ) from error
      raise RecordError(f"{self.where(index)}: {error}. {REMEDY}") from error
