"""A MessagePack reader for files that nobody vouches for.

Reads a stream value by value, so that a file of any size needs memory for one
value only. Every length is compared with the bytes that are left before
anything is allocated; depth and the number of objects are limited; extension
types come back as they are. Only strings are keys, and each only once.
Format: https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from vmoe_study.checkpoint.errors import CheckpointError

_MAX_DEPTH = 64
_MAX_OBJECTS = 200_000
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
  0xCA: ">f",
  0xCB: ">d",
  0xCC: ">B",
  0xCD: ">H",
  0xCE: ">I",
  0xCF: ">Q",
  0xD0: ">b",
  0xD1: ">h",
  0xD2: ">i",
  0xD3: ">q",
}
# First byte: (kind, how the length is written).
_SIZED = {
  0xC4: ("bin", ">B"),
  0xC5: ("bin", ">H"),
  0xC6: ("bin", ">I"),
  0xC7: ("ext", ">B"),
  0xC8: ("ext", ">H"),
  0xC9: ("ext", ">I"),
  0xD9: ("str", ">B"),
  0xDA: ("str", ">H"),
  0xDB: ("str", ">I"),
  0xDC: ("array", ">H"),
  0xDD: ("array", ">I"),
  0xDE: ("map", ">H"),
  0xDF: ("map", ">I"),
}
# First byte from ... to: (kind, length is the byte minus the first).
_SHORT = (
  (0x80, 0x8F, "map"),
  (0x90, 0x9F, "array"),
  (0xA0, 0xBF, "str"),
)


class Ext(NamedTuple):
  """An extension value: its type and its bytes, not interpreted."""

  code: int
  data: bytes


class Reader:
  """Reads values of one file or of one payload, in order."""

  def __init__(self, stream: BinaryIO, size: int, name: str):
    """Wraps a stream of exactly `size` bytes; `name` is for messages."""
    self._stream = stream
    self._left = size
    self._objects = 0
    self._name = name

  def value(self) -> Any:
    """The next value: None, bool, int, float, str, bytes, list, dict, Ext.

    Raises:
      CheckpointError: the bytes are no MessagePack, or exceed a limit.
    """
    return self._value(0)

  def map_keys(self) -> Iterator[str]:
    """The keys of the map that comes next; read each value in between."""
    kind, length = self._header()
    if kind != "map":
      raise self.error("a map was expected here")
    yield from self._keys(length)

  def end(self) -> None:
    """Raises CheckpointError if there are bytes left."""
    if self._left:
      raise self.error(f"{self._left} bytes follow the last value")

  def error(self, problem: str) -> CheckpointError:
    """An error that names the file."""
    return CheckpointError(
      f"{self._name}: {problem}. The file is damaged or is not of this format: "
      "fetch it again."
    )

  def _value(self, depth: int) -> Any:
    if depth > _MAX_DEPTH:
      raise self.error(f"values are nested more than {_MAX_DEPTH} deep")
    kind, content = self._header()
    if kind == "constant":
      return content
    if kind == "array":
      return [self._value(depth + 1) for _ in range(content)]
    if kind == "map":
      return {key: self._value(depth + 1) for key in self._keys(content)}
    if kind == "ext":
      return Ext(self._number(">b"), self._bytes(content))
    data = self._bytes(content)
    return self._text(data) if kind == "str" else data

  def _header(self) -> tuple[str, Any]:
    """The kind of the next value, and its length or, if short, the value."""
    self._objects += 1
    if self._objects > _MAX_OBJECTS:
      raise self.error(f"it holds more than {_MAX_OBJECTS} values")
    (first,) = self._bytes(1)
    if first <= 0x7F or first >= 0xE0:
      return "constant", first if first <= 0x7F else first - 0x100
    if first in _CONSTANTS:
      return "constant", _CONSTANTS[first]
    if first in _NUMBERS:
      return "constant", self._number(_NUMBERS[first])
    if 0xD4 <= first <= 0xD8:
      return "ext", 1 << (first - 0xD4)
    kind, length = self._sized(first)
    if length * (2 if kind == "map" else 1) > self._left:
      raise self.error(
        f"a {kind} claims length {length}, but {self._left} bytes are left"
      )
    return kind, length

  def _sized(self, first: int) -> tuple[str, int]:
    if first in _SIZED:
      kind, form = _SIZED[first]
      return kind, self._number(form)
    for low, high, kind in _SHORT:
      if low <= first <= high:
        return kind, first - low
    raise self.error(f"byte {first:#x} begins no value")

  def _keys(self, length: int) -> Iterator[str]:
    seen = set()
    for _ in range(length):
      key = self._value(_MAX_DEPTH)
      if not isinstance(key, str) or key in seen:
        raise self.error(
          f"key {str(key)[:40]!r} of a map is no string or comes twice"
        )
      seen.add(key)
      yield key

  def _number(self, form: str) -> Any:
    return struct.unpack(form, self._bytes(struct.calcsize(form)))[0]

  def _text(self, data: bytes) -> str:
    try:
      return data.decode()
    except UnicodeDecodeError as error:
      raise self.error(f"a string is not UTF-8: {data[:40]!r}") from error

  def _bytes(self, length: int) -> bytes:
    if length > self._left:
      raise self.error(
        f"it ends early: {length} bytes wanted, {self._left} left"
      )
    data = self._stream.read(length)
    if len(data) != length:
      raise self.error(
        f"it ends early: {length} bytes wanted, {len(data)} came"
      )
    self._left -= length
    return data
