"""The records of TFRecord and ArrayRecord files as one sequence.

A TFRecord file is a sequence of records, each of
    length (uint64), masked crc32c of length (uint32),
    data (`length` bytes), masked crc32c of data (uint32),
all little-endian. `record_index` says where each record begins.

All data are read by `Records.read`, which takes the numbers of any records and
reads neighbouring ones with one request.
"""

import dataclasses
import itertools
import resource
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from absl import logging

from vmoe_study.data import array_record_file
from vmoe_study.data.record_index import (
  FILE_THREADS,
  FOOTER_BYTES,
  HEADER_BYTES,
  REMEDY,
  RecordError,
  all_indices,
  array_record_index,
  digest,
  file_key,
  masked_crc,
  record_length,
  tfrecord_index,
)
from vmoe_study.files.ranges import is_remote, read_range

BLOCK_BYTES = 4 * 2**20  # Of one request, if records are read in blocks.


T = TypeVar("T")


def intact(found: T | RecordError) -> T:
  """Returns what was read, or raises it if it is an error."""
  if isinstance(found, RecordError):
    raise found
  return found


@dataclasses.dataclass(frozen=True)
class FileSpan:
  """Records [skip, skip + take) of one file (a path or URL)."""

  filename: str
  skip: int
  take: int


class Records:
  """The records of several file spans.

  Attributes:
    is_remote: whether every read takes a request.
  """

  def __init__(self, spans: Sequence[FileSpan], indices: Sequence[Path] = ()):
    """Takes file spans in order.

    Args:
      spans: the spans, `FileSpan` or objects with the same attributes.
      indices: the index of each file, for `blocks`.
    """
    self._spans = list(spans)
    self._indices = list(indices)
    self._starts = np.cumsum([0, *(span.take for span in spans)])
    self.is_remote = any(is_remote(span.filename) for span in spans)

  def __len__(self) -> int:
    return int(self._starts[-1])

  def locate(self, index: int) -> tuple[int, int]:
    """Returns (number of the span, number of the record in its file)."""
    shard = int(np.searchsorted(self._starts, index, side="right")) - 1
    record = index - int(self._starts[shard]) + self._spans[shard].skip
    return shard, record

  def where(self, index: int) -> str:
    """The file and number of record `index`, for error messages."""
    return self._where(*self.locate(index))

  def _where(self, shard: int, record: int) -> str:
    return f"{self._spans[shard].filename}, record {record}"

  def file_ends(self) -> np.ndarray:
    """Indices of the last record of each span, which truncation would lose."""
    return self._starts[1:] - 1

  def key(self) -> str:
    """A digest of the files' names, sizes and times, and of the spans."""
    with ThreadPoolExecutor(FILE_THREADS) as pool:
      keys = list(pool.map(file_key, [str(s.filename) for s in self._spans]))
    parts = zip(keys, self._spans, strict=True)
    return digest(" ".join(f"{k}[{s.skip}:+{s.take}]" for k, s in parts))

  def blocks(self) -> np.ndarray:
    """Cuts the records into blocks of about `BLOCK_BYTES`, for large reads.

    Returns:
      int64 (M + 1,): the first record of every block, and the total.
      No block has records of two files.
    """
    starts = [np.zeros(0, np.int64)]
    spans = zip(self._spans, self._indices, self._starts, strict=False)
    for span, index, first in spans:
      offsets = np.fromfile(index, np.int64)[span.skip : span.skip + span.take]
      numbers = offsets // BLOCK_BYTES
      changes = np.flatnonzero(np.diff(numbers)) + 1
      starts.append(first + np.concatenate([[0], changes]))
    return np.append(np.concatenate(starts), len(self)).astype(np.int64)

  def read(self, indices: Sequence[int]) -> list[bytes | RecordError]:
    """Reads records; consecutive ones in a file with one request.

    Returns:
      The data of each record, or an error if it is damaged.

    Raises:
      OSError: a file cannot be read.
    """
    places = [self.locate(int(index)) for index in indices]
    return [
      record
      for shard, numbers in _runs(places)
      for record in self._read_run(shard, numbers)
    ]

  def __getitem__(self, index: int) -> bytes:
    """Reads one record.

    Raises:
      RecordError: it is damaged.
    """
    return intact(self.read([index])[0])

  def _read_run(self, shard: int, numbers: range) -> list[bytes | RecordError]:
    """Reads records with these numbers in one file."""
    raise NotImplementedError

  def _with_record_errors(
    self, shard: int, numbers: range, found: Sequence[bytes | Exception]
  ) -> list[bytes | RecordError]:
    """Names the record in every error."""
    return [
      RecordError(f"{self._where(shard, number)}: {record}. {REMEDY}")
      if isinstance(record, Exception)
      else record
      for number, record in zip(numbers, found, strict=True)
    ]

  def _offsets(self, shard: int, numbers: range) -> np.ndarray:
    """The starts of records and the end of the last, as far as they exist."""
    return np.fromfile(
      self._indices[shard],
      np.int64,
      len(numbers) + 1,
      offset=8 * numbers.start,
    )


def _runs(places: Sequence[tuple[int, int]]) -> Iterator[tuple[int, range]]:
  """Groups consecutive (shard, record) pairs."""
  enumerated = enumerate(places)
  for (shard, _), group in itertools.groupby(
    enumerated, lambda item: (item[1][0], item[1][1] - item[0])
  ):
    records = [record for _, (_, record) in group]
    yield shard, range(records[0], records[-1] + 1)


class TfRecords(Records):
  """Records of TFRecord files on any file system that fsspec knows.

  Pickled objects are small, as the offsets stay in their files.
  """

  def __init__(self, spans: Sequence[FileSpan]):
    """Opens the index of every file, or makes it."""
    urls = [str(span.filename) for span in spans]
    super().__init__(spans, all_indices(tfrecord_index, urls))
    logging.info("offset index ready for %d record files", len(spans))

  def _read_run(self, shard: int, numbers: range) -> list[bytes | RecordError]:
    offsets = self._offsets(shard, numbers)
    records: list[bytes | RecordError] = []
    if len(offsets) > 1:
      first, last = int(offsets[0]), int(offsets[-1])
      data = read_range(self._spans[shard].filename, first, last)
      parts = itertools.pairwise((offsets - first).tolist())
      records = [
        _checked(data[start:stop], self._where(shard, number))
        for number, (start, stop) in zip(numbers, parts, strict=False)
      ]
    for number in numbers[len(records) :]:
      records.append(
        RecordError(
          f"{self._where(shard, number)}: the file is truncated and ends "
          f"before this record. {REMEDY}"
        )
      )
    return records


def _checked(raw: bytes, where: str) -> bytes | RecordError:
  """The data of a TFRecord, or an error if it is damaged."""
  try:
    length = record_length(raw[:HEADER_BYTES], where)
  except RecordError as error:
    return error
  data = raw[HEADER_BYTES : HEADER_BYTES + length]
  if masked_crc(data) != int.from_bytes(raw[-FOOTER_BYTES:], "little"):
    return RecordError(
      f"{where}: the checksum of the data is wrong, so the file is damaged. "
      f"{REMEDY}"
    )
  return data


class RemoteArrayRecords(Records):
  """Records of ArrayRecord files on any file system that fsspec knows."""

  def __init__(self, spans: Sequence[FileSpan]):
    """Opens the index of every file, which is at its end."""
    urls = [str(span.filename) for span in spans]
    super().__init__(spans, all_indices(array_record_index, urls))

  def _read_run(self, shard: int, numbers: range) -> list[bytes | RecordError]:
    span, index = self._spans[shard], self._indices[shard]
    offsets = np.fromfile(index, np.int64)
    first = int(offsets[numbers.start])
    # The end of the last record's chunk, which other records may share.
    last = offsets[numbers.stop - 1]
    stop = int(offsets[np.searchsorted(offsets, last, side="right")])
    tail = index.with_suffix(".tail").read_bytes()
    part = read_range(str(span.filename), first, stop)
    found = array_record_file.read_part(
      part, first, tail, int(offsets[-1]), numbers
    )
    return self._with_record_errors(shard, numbers, found)


RESERVED_FILES = 200  # For the rest of the process.
ENOUGH_FILES = 16_384  # For several data sets at once.


def allow_open_files(count: int) -> None:
  """Raises this process's limit of open files, as far as allowed and needed.

  Worker processes inherit it.

  Raises:
    OSError: the limit cannot be raised enough for `count` files.
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


class LocalArrayRecords(Records):
  """Records of ArrayRecord files on local disks, which are kept open.

  Pickled objects open the files again.
  """

  def __init__(self, spans: Sequence[FileSpan]):
    """Opens a file when it is first read."""
    super().__init__(spans)
    allow_open_files(len(spans))
    self._readers: dict[int, Any] = {}

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, "_readers": {}}

  def blocks(self) -> np.ndarray:
    urls = [str(span.filename) for span in self._spans]
    self._indices = all_indices(array_record_index, urls)
    return super().blocks()

  def _read_run(self, shard: int, numbers: range) -> list[bytes | RecordError]:
    if shard not in self._readers:
      path = str(self._spans[shard].filename)
      try:
        self._readers[shard] = array_record_file.open_reader(path)
      except FileNotFoundError as error:
        return self._with_record_errors(shard, numbers, [error] * len(numbers))
    found = array_record_file.read_run(self._readers[shard], numbers)
    return self._with_record_errors(shard, numbers, found)


def open_array_records(spans: Sequence[FileSpan]) -> Records:
  """Opens ArrayRecord files, which must be all local or all remote."""
  remote = any(is_remote(span.filename) for span in spans)
  return (RemoteArrayRecords if remote else LocalArrayRecords)(spans)
