"""Reads parts of an ArrayRecord file from any file system.

The package `array_record` opens local paths only. Here the index at the end of
the file gives the positions of the records. A part of the file is copied to its
position in an otherwise empty in-memory file, which the package then reads: it
checks all hashes and decompresses.

The format is that of Riegeli. Chunks follow each other, interrupted by a block
header of 24 bytes at every multiple of 64 KiB. A chunk is a header of 40 bytes
(hash, size, hash, number of records, decoded size) and records that are stored
together: a byte for the compression, the sizes of the records as varints,
preceded by their own size, and the records. The last 64 KiB begin with a chunk
of three equal records, which give the position of the index chunk. The records
of the index are protocol buffers: first one with options, then one for every
chunk with its position (field 1) and its number of records (field 3).
"""

import os
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vmoe_study.files.ranges import file_size, read_range

if TYPE_CHECKING:
  from array_record.python.array_record_module import ArrayRecordReader

BLOCK = 1 << 16
BLOCK_HEADER = 24
CHUNK_HEADER = struct.Struct("<5Q")
TAIL = 4 * BLOCK  # Read first; holds the index of a few ten thousand records.
UNCOMPRESSED, ZSTD = 0, ord("z")
ONE_BY_ONE = "readahead_buffer_size:0,max_parallelism:0"


class FormatError(ValueError):
  """A file is not an ArrayRecord file, or it is damaged."""


def read_index(url: str) -> tuple[np.ndarray, bytes]:
  """Reads the index of an ArrayRecord file, and nothing else.

  Returns:
    int64 (N + 1,), the position of each record's chunk and the end of the last
    chunk; and all bytes of the file after that end.

  Raises:
    FormatError: there is no index.
  """
  size = file_size(url)
  try:
    if size < BLOCK or size % BLOCK:
      raise ValueError(f"its size, {size}, is not a multiple of {BLOCK}")
    first = max(0, size - TAIL)
    tail = read_range(url, first, size)
    _, pointers = _chunk(tail, first, size - BLOCK)
    start = _fields(next(_records(pointers, 3)))[1]
    if start < first:
      tail, first = read_range(url, start, first) + tail, start
    tail = tail[start - first :]
    count, data = _chunk(tail, start, start)
    starts, counts = [], []
    for record in list(_records(data, count))[1:]:
      fields = _fields(record)
      starts.append(fields[1])
      counts.append(fields[3])
  except (ValueError, IndexError, KeyError, StopIteration) as error:
    raise FormatError(
      f"{url}: has no index of an ArrayRecord file: {error}. Fetch or prepare "
      "it again."
    ) from error
  offsets = np.append(np.repeat(starts, counts), start).astype(np.int64)
  return offsets, tail


def read_part(
  part: bytes, start: int, tail: bytes, tail_start: int, records: range
) -> list[bytes | Exception]:
  """Reads records whose chunks are all in a part of a file.

  Args:
    part: bytes of the file.
    start: position of the part in the file.
    tail: bytes from the index to the end of the file.
    tail_start: position of the tail in the file.
    records: numbers of the records in the file.

  Returns:
    Each record, or the error if it is damaged.
  """
  file = os.memfd_create("records")
  try:
    for data, position in ((part, start), (tail, tail_start)):
      _write(file, data, position)
    reader = open_reader(f"/proc/self/fd/{file}")
    try:
      return read_run(reader, records)
    finally:
      reader.close()
  finally:
    os.close(file)


def open_reader(path: str) -> "ArrayRecordReader":
  """Opens a local file; reading reports what is wrong with its contents.

  Raises:
    OSError: it cannot be opened.
  """
  from array_record.python.array_record_module import ArrayRecordReader

  with open(path, "rb"):
    pass  # The reader would be empty instead of raising an error.
  return ArrayRecordReader(path, ONE_BY_ONE)


def read_run(
  reader: "ArrayRecordReader", records: range
) -> list[bytes | Exception]:
  """Reads consecutive records; the time does not depend on the file's size.

  Returns:
    Each record, or the error if it is damaged.
  """
  # A list of numbers instead takes longer, the more records the file has.
  try:
    return list(reader.read(records.start, records.stop))
  except (ValueError, RuntimeError, IndexError) as error:
    if len(records) == 1:
      return [error]
  return [read_run(reader, range(n, n + 1))[0] for n in records]


def _write(file: int, data: bytes, position: int) -> None:
  view = memoryview(data)
  while view:
    written = os.pwrite(file, view, position)
    view, position = view[written:], position + written


def _chunk(data: bytes, start: int, position: int) -> tuple[int, bytes]:
  """Number of records and data of a chunk; `data` begins at `start`."""
  header, position = _without_headers(data, start, position, CHUNK_HEADER.size)
  _, size, _, count, _ = CHUNK_HEADER.unpack(header)
  content, _ = _without_headers(data, start, position, size)
  return count >> 8, content  # Its lowest byte is the type of the chunk.


def _without_headers(
  data: bytes, start: int, position: int, size: int
) -> tuple[bytes, int]:
  """The next `size` bytes without block headers, and their end position."""
  parts = []
  while size:
    if position % BLOCK == 0:
      position += BLOCK_HEADER
    part = min(size, BLOCK - position % BLOCK)
    found = data[position - start : position - start + part]
    if len(found) < part:
      raise ValueError("it is cut off")
    parts.append(found)
    position, size = position + part, size - part
  return b"".join(parts), position


def _records(chunk: bytes, count: int) -> Iterator[bytes]:
  compression = chunk[0]
  size, begin = _varint(chunk, 1)
  sizes = _decompress(compression, chunk[begin : begin + size])
  values = _decompress(compression, chunk[begin + size :])
  place = position = 0
  for _ in range(count):
    length, place = _varint(sizes, place)
    yield values[position : position + length]
    position += length


def _decompress(compression: int, data: bytes) -> bytes:
  if compression == UNCOMPRESSED:
    return data
  if compression != ZSTD:
    raise ValueError(f"its compression is {chr(compression)!r}")
  try:
    import zstandard
  except ImportError as error:
    raise ImportError(
      "reading ArrayRecord files from a store needs zstandard. Install the "
      "extra `gcs` of this package."
    ) from error
  _, begin = _varint(data, 0)  # The decompressed size.
  return zstandard.ZstdDecompressor().decompressobj().decompress(data[begin:])


def _fields(message: bytes) -> dict[int, int]:
  """The integer fields of a protocol buffer that precede all others."""
  fields, position = {}, 0
  while position < len(message):
    key, position = _varint(message, position)
    if key & 7:
      break
    fields[key >> 3], position = _varint(message, position)
  return fields


def _varint(data: Sequence[int], position: int) -> tuple[int, int]:
  """A varint (7 bits per byte), and the position after it."""
  value = shift = 0
  while True:
    byte = data[position]
    position += 1
    value |= (byte & 0x7F) << shift
    shift += 7
    if byte < 0x80:
      return value, position
