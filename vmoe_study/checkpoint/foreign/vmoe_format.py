"""The value types in public V-MoE checkpoints: slices, entries, pieces.

They are MessagePack extension types. Their payloads are packed again:

  1  array     (shape, dtype name, bytes in C order)
  4  form      (shape, dtype name, weak type, {})
  5  slice     (start, stop, step)
  6  slices    a type-5 payload for every axis
  8  entry     (type-4 payload, [type-6 payload of every chunk], [its shard])
"""

import math
from typing import Any, NamedTuple

import ml_dtypes
import msgpack
import numpy as np

from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.foreign.msgpack_reader import unpack

_ARRAY, _SLICES, _ENTRY = 1, 6, 8
_CHUNKED_MARK = "__msgpack_chunked_array__"  # Flax's map of a large array.
_MAX_CHUNKS = 4096  # Of one array.
_MAX_RANK = 8
_DTYPES = {
  np.dtype(dtype).name: np.dtype(dtype)
  for dtype in (
    *("float16", "float32", "float64", ml_dtypes.bfloat16, "bool"),
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
  )
}

Box = tuple[tuple[int, int], ...]
"""Start and stop of a chunk on each axis."""


class Entry(NamedTuple):
  """The index's entry of one array: its chunks and the shards they are in."""

  path: str
  shape: tuple[int, ...]
  dtype: np.dtype
  shards: dict[Box, int]

  @property
  def nbytes(self) -> int:
    """Size of the whole array in bytes."""
    return math.prod(self.shape) * self.dtype.itemsize


def error(where: str, problem: str) -> CheckpointError:
  """An error that names the file and, if given in `where`, the array."""
  return CheckpointError(
    f"{where}: {problem}. The checkpoint is damaged or of another format: "
    "fetch its files again."
  )


def read_entry(file: str, path: str, leaf: Any) -> Entry:
  """Decodes a leaf of the index; checks that its chunks tile the array.

  Raises:
    CheckpointError: they do not, or the leaf has another form.
  """
  where = f"{file}: {path}"
  packed, slices, shards = sequence(where, _payload(where, leaf, _ENTRY), 3)
  shape, dtype = sequence(where, _unpack(where, packed), 4)[:2]
  dims = sequence(where, shape)
  if len(dims) > _MAX_RANK or not all(in_range(n, 1, 2**63) for n in dims):
    raise error(where, f"{shape!r} is not the shape of an array")
  slices, shards = sequence(where, slices), sequence(where, shards)
  if len(slices) != len(shards) or len(slices) > _MAX_CHUNKS:
    raise error(
      where,
      f"{len(slices)} chunks with {len(shards)} shards: each chunk must have "
      f"a shard, and an array at most {_MAX_CHUNKS} chunks",
    )
  boxes = [_box(where, _unpack(where, item), dims) for item in slices]
  _check_tiling(where, dims, boxes)
  places = dict(zip(boxes, shards, strict=True))
  return Entry(path, tuple(dims), _dtype(where, dtype), places)


def read_slices(where: str, value: Any, shape: tuple[int, ...]) -> Box:
  """Decodes the slices of a chunk in a data file."""
  return _box(where, _payload(where, value, _SLICES), shape)


def read_pieces(where: str, value: Any) -> list[np.ndarray]:
  """Decodes the flat arrays of a chunk, in order."""
  pieces = []
  for item in sequence(where, value):
    if isinstance(item, dict) and item.get(_CHUNKED_MARK) is True:
      pieces += read_pieces(where, _chunks(where, item.get("chunks")))
    else:
      pieces.append(_array(where, item))
  return pieces


def sequence(where: str, value: Any, length: int | None = None) -> list:
  """Returns the value if it is a list of that length; else CheckpointError."""
  if not isinstance(value, list) or length not in (None, len(value)):
    count = "" if length is None else f" of {length}"
    raise error(where, f"{str(value)[:40]!r} is not a list{count}")
  return value


def in_range(value: Any, low: int, high: int) -> bool:
  """Whether the value is an integer with low <= value < high."""
  integer = isinstance(value, int) and not isinstance(value, bool)
  return integer and low <= value < high


def volume(box: Box) -> int:
  """The number of elements in a chunk."""
  return math.prod(stop - start for start, stop in box)


def _box(where: str, slices: Any, shape: list[int] | tuple[int, ...]) -> Box:
  box = []
  slices = sequence(where, slices, len(shape))
  for packed, size in zip(slices, shape, strict=True):
    start, stop, step = sequence(where, _unpack(where, packed), 3)
    start = 0 if start is None else start
    stop = size if stop is None else stop
    inside = in_range(start, 0, size) and in_range(stop, 1, size + 1)
    if not inside or start >= stop or step not in (None, 1):
      raise error(
        where, f"{start}:{stop}:{step} is not a slice of an axis of {size}"
      )
    box.append((start, stop))
  return tuple(box)


def _check_tiling(where: str, shape: list[int], boxes: list[Box]) -> None:
  """Checks that every element of the array is in exactly one chunk."""
  covered, size = sum(map(volume, boxes)), math.prod(shape)
  if covered != size:
    raise error(
      where, f"its chunks have {covered} elements, shape {shape} has {size}"
    )
  if len(boxes) == 1:
    return
  if math.prod(n + 1 for n in shape) >= 2**63:
    raise error(where, f"{shape!r} is too large")
  corners, signs = _corners(shape, boxes)
  whole, whole_signs = _corners(shape, [tuple((0, n) for n in shape)])
  places = np.concatenate([corners, whole])
  _, place = np.unique(places, return_inverse=True)
  if np.bincount(place, np.concatenate([signs, -whole_signs])).any():
    raise error(where, "a chunk overlaps another chunk")


def _corners(
  shape: list[int], boxes: list[Box]
) -> tuple[np.ndarray, np.ndarray]:
  """Flat positions of the corners of boxes, and their signs.

  The sign is -1 for each axis on which the corner is at the end. Two sets of
  boxes have equal sums of signs at every position only if they cover the same
  elements: these sums are the differences, along all axes, of the number of
  boxes that cover an element. The check takes linear time in the number of
  boxes.
  """
  bounds = np.array(boxes, np.int64).reshape(len(boxes), len(shape), 2)
  places, signs = np.zeros((len(boxes), 1), np.int64), np.ones(1)
  for axis, size in enumerate(shape):
    places = places[:, :, None] * (size + 1) + bounds[:, axis, None, :]
    places = places.reshape(len(boxes), -1)
    signs = np.outer(signs, [1, -1]).reshape(-1)
  return places.reshape(-1), np.tile(signs, len(boxes))


def _chunks(where: str, value: Any) -> list:
  """The items of a tuple, which Flax writes as a map from "0", "1", ..."""
  if not isinstance(value, dict):
    return sequence(where, value)
  names = [str(i) for i in range(len(value))]
  if value.keys() != set(names):
    raise error(where, f"chunks are named {sorted(value)[:4]}, not 0, 1, ...")
  return [value[name] for name in names]


def _array(where: str, value: Any) -> np.ndarray:
  content = _payload(where, value, _ARRAY)
  shape, dtype, data = sequence(where, content, 3)
  dims = sequence(where, shape)
  dtype = _dtype(where, dtype)
  valid = all(in_range(n, 1, 2**63) for n in dims) and isinstance(data, bytes)
  if not valid or math.prod(dims) * dtype.itemsize != len(data):
    raise error(where, f"an array of {dtype}{shape} does not fit its bytes")
  return np.frombuffer(data, dtype)


def _dtype(where: str, name: Any) -> np.dtype:
  if not isinstance(name, str) or name not in _DTYPES:
    raise error(
      where, f"dtype {str(name)[:40]!r}: must be one of {list(_DTYPES)}"
    )
  return _DTYPES[name]


def _payload(where: str, value: Any, code: int) -> Any:
  if not isinstance(value, msgpack.ExtType) or value.code != code:
    raise error(where, f"a value of extension type {code} was expected")
  return _unpack(where, value.data)


def _unpack(where: str, data: Any) -> Any:
  if not isinstance(data, bytes):
    raise error(where, f"{str(data)[:40]!r} is not packed bytes")
  return unpack(data, where)
