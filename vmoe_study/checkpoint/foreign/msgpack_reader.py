"""MessagePack from untrusted files: the msgpack package, with limits.

msgpack decodes and runs nothing. This module bounds what a file can make it
allocate, whatever lengths the file claims: strings and bytes by the size of the
file, each list or map by `_MAX_LENGTH` items, and all of them together by
`_MAX_VALUES`. Extension values are returned as `msgpack.ExtType`, undecoded.
Stricter than the format: the keys of a map must be unique strings.
"""

from collections.abc import Callable, Container, Iterator
from typing import Any, BinaryIO

import msgpack

from vmoe_study.checkpoint.errors import CheckpointError, one_line

_MAX_DEPTH = 64
_MAX_VALUES = 200_000
# msgpack allocates the claimed length of a list at once and nests 1024 of them
# before it stops: up to 34 MB of empty lists, 250 MB of short strings in them.
_MAX_LENGTH = 4096


class Reader:
  """Reads the values of one file in order, holding one of them in memory."""

  def __init__(self, stream: BinaryIO, size: int, name: str):
    """Wraps a stream of `size` bytes; error messages begin with `name`."""
    self._decoder = _Decoder(name)
    self._size = size
    self._unpacker = msgpack.Unpacker(
      stream, max_buffer_size=max(size, 1), **self._decoder.options()
    )

  def value(self) -> Any:
    """The next value: None, bool, int, float, str, bytes, list, dict, ExtType.

    Raises:
      CheckpointError: the bytes are not MessagePack, or exceed a limit.
    """
    return self._decoder.decode(self._unpacker.unpack)

  def map_keys(self) -> Iterator[str]:
    """Yields the keys of the next map; read each value in between."""
    length = self._decoder.decode(self._unpacker.read_map_header)
    self._decoder.count(2 * length)
    seen: set[str] = set()
    for _ in range(length):
      key = self.value()
      self._decoder.check_key(key, seen)
      seen.add(key)
      yield key

  def end(self) -> None:
    """Raises CheckpointError if bytes follow the last value."""
    if rest := self._size - self._unpacker.tell():
      raise self._decoder.error(f"{rest} bytes follow the last value")


def unpack(data: bytes, name: str) -> Any:
  """The one value that `data` holds; see `Reader.value`.

  Raises:
    CheckpointError: the bytes are not one MessagePack value, or exceed a limit.
  """
  decoder = _Decoder(name)
  options = decoder.options()
  return decoder.decode(lambda: msgpack.unpackb(data, **options))


class _Decoder:
  """Enforces the limits for one file, and translates msgpack's errors."""

  def __init__(self, name: str):
    self._name = name
    self._count = 0

  def options(self) -> dict[str, Any]:
    """Options of `msgpack.Unpacker`."""
    return {
      "max_array_len": _MAX_LENGTH,
      "max_map_len": _MAX_LENGTH,
      "list_hook": self._list,
      "object_pairs_hook": self._map,
    }

  def decode(self, read: Callable[[], Any]) -> Any:
    """The value that `read` returns; its errors become CheckpointError."""
    try:
      value = read()
    except msgpack.OutOfData as error:
      raise self.error("it ends early") from error
    except msgpack.ExtraData as error:
      raise self.error(f"{len(error.extra)} bytes follow the value") from error
    except msgpack.StackError as error:
      raise self._too_deep() from error
    except (ValueError, msgpack.UnpackException) as error:
      raise self.error(f"it is not MessagePack ({one_line(error)})") from error
    self._check_depth(value, _MAX_DEPTH)
    return value

  def count(self, values: int) -> None:
    """Adds to the number of values; raises CheckpointError above the limit."""
    self._count += values
    if self._count > _MAX_VALUES:
      raise self.error(f"it holds more than {_MAX_VALUES} values")

  def check_key(self, key: Any, seen: Container[str]) -> None:
    """Checks that the next key of a map is a string that has not occurred."""
    if not isinstance(key, str) or key in seen:
      raise self.error(
        f"key {str(key)[:40]!r} of a map is not a string or occurs twice"
      )

  def error(self, problem: str) -> CheckpointError:
    """An error that names the file."""
    return CheckpointError(
      f"{self._name}: {problem}. The file is damaged or of another format: "
      "fetch it again."
    )

  def _too_deep(self) -> CheckpointError:
    return self.error(f"values are nested more than {_MAX_DEPTH} deep")

  def _check_depth(self, value: Any, left: int) -> None:
    if left < 0:
      raise self._too_deep()
    if isinstance(value, list | dict):
      for item in value.values() if isinstance(value, dict) else value:
        self._check_depth(item, left - 1)

  def _list(self, values: list) -> list:
    self.count(len(values))
    return values

  def _map(self, pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    self.count(2 * len(pairs))
    result: dict[str, Any] = {}
    for key, value in pairs:
      self.check_key(key, result)
      result[key] = value
    return result
