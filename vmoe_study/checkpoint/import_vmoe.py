"""Reading the checkpoints that the public V-MoE code wrote.

A checkpoint with prefix P is an index, `P.index`, and shards,
`P.data-00000-of-000NN`. The index holds the parameter tree; each leaf says its
shape and dtype, how the array is cut into chunks, and which shard has which
chunk. Leaves are numbered in the order of the tree with sorted keys. A shard
maps leaf numbers to chunks; a chunk is a list of flat pieces, one after the
other, and the slice of the array where they belong.

Everything in a file is checked against the index, and the index against the
sizes of the files, before memory is reserved: a checkpoint costs no more memory
than its files are long, plus one chunk.
"""

import io
import math
from collections import Counter
from typing import Any, NamedTuple

import fsspec
import ml_dtypes
import numpy as np

from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.msgpack_reader import Ext, Reader

_NDARRAY, _SLICES, _ENTRY = 1, 6, 8  # Extension types.
_SHARD_MARK = "__msgpack_array_chunk_a87ca2__"
_CHUNKED_MARK = "__msgpack_chunked_array__"
_MAX_INDEX_BYTES = 16 << 20
_MAX_CHUNKS = 4096  # Of one array.
_MAX_RANK = 8
_DTYPES = {
  np.dtype(name).name: np.dtype(name)
  for name in (
    *("float16", "float32", "float64", ml_dtypes.bfloat16, "bool"),
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
  )
}

Box = tuple[tuple[int, int], ...]  # Start and stop along every axis.


class _Entry(NamedTuple):
  """What the index says of one array."""

  path: str
  shape: tuple[int, ...]
  dtype: np.dtype
  shards: dict[Box, int]


def read_vmoe(prefix: str) -> dict[str, Any]:
  """The parameters of a public V-MoE checkpoint.

  Args:
    prefix: path or URL (gs://, memory://, ...: whatever fsspec opens) of the
      checkpoint without ".index".

  Returns:
    Nested dictionaries of numpy arrays, named as in our models.

  Raises:
    CheckpointError: a file is missing, damaged, or contradicts another one.
  """
  files = _Files(prefix)
  shard_count, tree = _read_index(files)
  numbered = list(_leaves(tree, ()))
  entries = [_entry(files.index, path, leaf) for path, leaf in numbered]
  shards = [files.shard(i, shard_count) for i in range(shard_count)]
  _check_entries(files, entries, shards)
  arrays = [np.empty(entry.shape, entry.dtype) for entry in entries]
  for number, shard in enumerate(shards):
    _read_shard(files, shard, number, entries, arrays)
  return _rebuild(tree, iter(arrays))


class _Files:
  """The files of one checkpoint on any file system."""

  def __init__(self, prefix: str):
    self._fs, self._prefix = fsspec.core.url_to_fs(prefix)
    self.index = f"{self._prefix}.index"

  def shard(self, number: int, count: int) -> str:
    return f"{self._prefix}.data-{number:05d}-of-{count:05d}"

  def size(self, path: str) -> int:
    try:
      return self._fs.size(path)
    except FileNotFoundError as error:
      raise CheckpointError(
        f"{path} does not exist: a checkpoint is one .index file and all the "
        ".data files that it counts. Check the prefix, or fetch the file."
      ) from error

  def open(self, path: str) -> Any:
    return self._fs.open(path, "rb")


def _read_index(files: _Files) -> tuple[int, dict[str, Any]]:
  size = files.size(files.index)
  if size > _MAX_INDEX_BYTES:
    raise _error(
      files.index, f"{size} bytes, an index has at most {_MAX_INDEX_BYTES}"
    )
  with files.open(files.index) as stream:
    reader = Reader(stream, size, files.index)
    content = reader.value()
    reader.end()
  if not isinstance(content, dict):
    raise _error(files.index, "its content is not a map")
  count, tree = content.get("shard_count"), content.get("index")
  if not _is_int(count) or not 0 < count <= _MAX_CHUNKS:
    raise _error(files.index, f"shard_count={count!r} is no count of shards")
  if not isinstance(tree, dict):
    raise _error(files.index, "it has no parameter tree under 'index'")
  return count, tree


def _leaves(tree: dict[str, Any], parents: tuple[str, ...]):
  """(path, leaf) in the order that numbers the leaves."""
  for name in sorted(tree):
    path = (*parents, name)
    if isinstance(tree[name], dict):
      yield from _leaves(tree[name], path)
    else:
      yield "/".join(path), tree[name]


def _rebuild(tree: dict[str, Any], arrays) -> dict[str, Any]:
  return {
    name: _rebuild(tree[name], arrays)
    if isinstance(tree[name], dict)
    else next(arrays)
    for name in sorted(tree)
  }


def _entry(file: str, path: str, leaf: Any) -> _Entry:
  """Interprets one leaf of the index."""
  where = f"{file}: {path}"
  if any(part in ("", ".", "..") or "\0" in part for part in path.split("/")):
    raise _error(where, f"{path!r} is no parameter name")
  packed, slices, shards = _sequence(where, _payload(where, leaf, _ENTRY), 3)
  shape, dtype = _sequence(where, _unpack(where, packed), 4)[:2]
  dims_ok = isinstance(shape, list) and all(_is_int(n) for n in shape)
  if not dims_ok or len(shape) > _MAX_RANK or min(shape, default=0) < 0:
    raise _error(where, f"shape {shape!r} is no shape")
  if dtype not in _DTYPES if isinstance(dtype, str) else True:
    raise _error(where, f"dtype {dtype!r} is not one of {list(_DTYPES)}")
  slices, shards = _sequence(where, slices), _sequence(where, shards)
  boxes = [_box(where, _unpack(where, item), shape) for item in slices]
  if len(boxes) != len(shards) or len(boxes) > _MAX_CHUNKS:
    raise _error(
      where, f"{len(boxes)} chunks in {len(shards)} places, at most {_MAX_CHUNKS}"
    )
  entry = _Entry(
    path, tuple(shape), _DTYPES[dtype], dict(zip(boxes, shards, strict=True))
  )
  _check_cover(where, entry, boxes)
  return entry


def _box(where: str, slices: Any, shape: tuple[int, ...]) -> Box:
  """A slice of an array; each axis is a packed (start, stop, step)."""
  slices = _sequence(where, slices, len(shape))
  box = []
  for packed, dim in zip(slices, shape, strict=True):
    start, stop, step = _sequence(where, _unpack(where, packed), 3)
    start = 0 if start is None else start
    stop = dim if stop is None else stop
    valid = _is_int(start) and _is_int(stop) and 0 <= start <= stop <= dim
    if not valid or step not in (None, 1):
      raise _error(
        where, f"slice {start!r}:{stop!r}:{step!r} of an axis of {dim}"
      )
    box.append((start, stop))
  return tuple(box)


def _check_cover(where: str, entry: _Entry, boxes: list[Box]) -> None:
  """Every element of the array is in one chunk."""
  covered = sum(_volume(box) for box in boxes)
  if covered != math.prod(entry.shape):
    raise _error(
      where,
      f"its chunks hold {covered} elements, shape {entry.shape} has "
      f"{math.prod(entry.shape)}",
    )
  if len(boxes) < 2:
    return
  bounds = np.array(boxes, np.int64).reshape(len(boxes), -1, 2)
  for i in range(1, len(boxes)):
    start = np.maximum(bounds[:i, :, 0], bounds[i, None, :, 0])
    stop = np.minimum(bounds[:i, :, 1], bounds[i, None, :, 1])
    if np.any(np.all(start < stop, axis=1)):
      raise _error(where, f"chunk {boxes[i]} overlaps another chunk")


def _check_entries(
  files: _Files, entries: list[_Entry], shards: list[str]
) -> None:
  """The arrays fit into the files, and chunks are in files that exist."""
  available = sum(files.size(shard) for shard in shards)
  claimed = sum(math.prod(e.shape) * e.dtype.itemsize for e in entries)
  if claimed > available:
    raise _error(
      files.index,
      f"its arrays have {claimed} bytes, its {len(shards)} data files {available}",
    )
  for entry in entries:
    for shard in entry.shards.values():
      if not _is_int(shard) or not 0 <= shard < len(shards):
        raise _error(
          f"{files.index}: {entry.path}",
          f"a chunk is in shard {shard!r} of {len(shards)}",
        )


def _read_shard(
  files: _Files,
  path: str,
  number: int,
  entries: list[_Entry],
  arrays: list[np.ndarray],
) -> None:
  """Copies the chunks of one shard to where they belong."""
  missing = {
    (i, box)
    for i, entry in enumerate(entries)
    for box, shard in entry.shards.items()
    if shard == number and _volume(box)
  }
  size = files.size(path)
  with files.open(path) as stream:
    reader = Reader(stream, size, path)
    marked = False
    for key in reader.map_keys():
      value = reader.value()
      if key == _SHARD_MARK:
        marked = value is True
        continue
      leaf = _leaf_number(path, key, len(entries))
      where = f"{path}: {entries[leaf].path}"
      for chunk in _sequence(where, value):
        pieces, slices = _sequence(where, chunk, 2)
        slices = _payload(where, slices, _SLICES)
        box = _box(where, slices, entries[leaf].shape)
        if _volume(box) and (leaf, box) not in missing:
          raise _error(where, f"chunk {box} is not expected here, or twice")
        missing.discard((leaf, box))
        _copy(where, pieces, box, arrays[leaf])
    reader.end()
  if missing or not marked:
    lost = sorted(f"{entries[i].path} {box}" for i, box in missing)
    raise _error(
      path, f"chunk {lost[0]} is missing" if lost else "it is no data file"
    )


def _copy(where: str, pieces: Any, box: Box, array: np.ndarray) -> None:
  """Joins the pieces of a chunk and stores them in the array."""
  pieces = [_piece(where, piece) for piece in _sequence(where, pieces)]
  size = sum(piece.size for piece in pieces)
  if size != _volume(box) or any(p.dtype != array.dtype for p in pieces):
    raise _error(
      where,
      f"chunk {box} of {array.dtype} has {size} elements of "
      f"{sorted({str(piece.dtype) for piece in pieces})}",
    )
  if size:
    flat = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    shape = [stop - start for start, stop in box]
    array[tuple(slice(*bounds) for bounds in box)] = flat.reshape(shape)


def _piece(where: str, packed: Any) -> np.ndarray:
  """A flat array: one extension value, or Flax's map of several."""
  if isinstance(packed, dict) and packed.get(_CHUNKED_MARK) is True:
    chunks = packed.get("chunks")
    if isinstance(chunks, dict):
      names = [str(i) for i in range(len(chunks))]
      if set(names) != chunks.keys():
        raise _error(where, f"chunks are named {sorted(chunks)[:4]}")
      chunks = [chunks[name] for name in names]
    flat = [_piece(where, chunk) for chunk in _sequence(where, chunks)]
    if not flat or len({piece.dtype for piece in flat}) > 1:
      raise _error(where, "a chunked array has no chunks or mixes dtypes")
    return np.concatenate(flat)
  content = _sequence(where, _payload(where, packed, _NDARRAY), 3)
  shape, dtype, data = content
  shape = _sequence(where, shape)
  known = isinstance(dtype, str) and dtype in _DTYPES
  if not known or not isinstance(data, bytes):
    raise _error(where, f"dtype {dtype!r} is not one of {list(_DTYPES)}")
  size = math.prod(shape) if all(_is_int(n) and n >= 0 for n in shape) else -1
  if size * _DTYPES[dtype].itemsize != len(data):
    raise _error(where, f"{len(data)} bytes for {dtype}{shape}")
  return np.frombuffer(data, _DTYPES[dtype])


def _payload(where: str, value: Any, code: int) -> Any:
  """What is packed in an extension value of the given type."""
  if not isinstance(value, Ext) or value.code != code:
    raise _error(where, f"a value of extension type {code} was expected")
  return _unpack(where, value.data)


def _unpack(where: str, data: Any) -> Any:
  if not isinstance(data, bytes):
    raise _error(where, f"{str(data)[:40]!r} is not packed bytes")
  reader = Reader(io.BytesIO(data), len(data), where)
  value = reader.value()
  reader.end()
  return value


def _sequence(where: str, value: Any, length: int | None = None) -> list:
  if not isinstance(value, list) or length not in (None, len(value)):
    count = "" if length is None else f" of {length}"
    raise _error(where, f"{str(value)[:40]!r} is not a list{count}")
  return value


def _leaf_number(path: str, key: str, count: int) -> int:
  numbers = {str(i): i for i in (int(key),)} if key.isdecimal() else {}
  number = numbers.get(key, count)
  if number >= count:
    raise _error(path, f"key {key[:40]!r} is no leaf number below {count}")
  return number


def _volume(box: Box) -> int:
  return math.prod(stop - start for start, stop in box)


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _error(where: str, problem: str) -> CheckpointError:
  return CheckpointError(
    f"{where}: {problem}. The checkpoint is damaged or of another format: fetch "
    "its files again."
  )
