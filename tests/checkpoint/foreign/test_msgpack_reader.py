"""The MessagePack reader against the msgpack package, and against hostility."""

import contextlib
import io
import struct
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.foreign.msgpack_reader import Ext, Reader

scalars = (
  st.none()
  | st.booleans()
  | st.integers(-(2**63), 2**64 - 1)
  | st.floats(allow_nan=False)
  | st.text()
  | st.binary()
  | st.builds(Ext, st.integers(0, 127), st.binary(max_size=40))
)
values = st.recursive(
  scalars,
  lambda inner: (
    st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5)
  ),
  max_leaves=20,
)
fuzz = settings(max_examples=200, deadline=None, derandomize=True)


def _read(data):
  reader = Reader(io.BytesIO(data), len(data), "file")
  value = reader.value()
  reader.end()
  return value


def _pack(value):
  if isinstance(value, Ext):
    return msgpack.ExtType(*value)
  if isinstance(value, list):
    return [_pack(item) for item in value]
  if isinstance(value, dict):
    return {key: _pack(item) for key, item in value.items()}
  return value


@fuzz
@given(values)
def test_reads_what_msgpack_writes(value):
  assert _read(msgpack.packb(_pack(value))) == value


@pytest.mark.parametrize("size", [15, 16, 31, 32, 255, 256, 65535, 65536])
def test_every_form_of_length(size):
  keys = {str(i): None for i in range(size)}
  for value in ("x" * size, b"x" * size, [1] * size, keys, Ext(1, b"x" * size)):
    assert _read(msgpack.packb(_pack(value))) == value


@fuzz
@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_our_error(data):
  try:
    _read(data)
  except CheckpointError as error:
    assert str(error).startswith("file: ")


@fuzz
@given(values, st.data())
def test_shortened_or_changed_files_give_a_value_or_our_error(value, data):
  packed = bytearray(msgpack.packb(_pack(value)))
  position = data.draw(st.integers(0, len(packed) - 1))
  with pytest.raises(CheckpointError):
    _read(bytes(packed[:position]))
  packed[position] = data.draw(st.integers(0, 255))
  with contextlib.suppress(CheckpointError):
    _read(bytes(packed))


@pytest.mark.parametrize(
  "data,message",
  [
    (b"\xdd\xff\xff\xff\xff", "array claims length 4294967295, but 0 bytes"),
    (b"\xdf\xff\xff\xff\xff" + b"\xc0" * 9, "map claims length"),
    (b"\xdb\x7f\xff\xff\xff", "str claims length"),
    (b"\xc6\xff\xff\xff\xff", "bin claims length"),
    (b"\xc9\xff\xff\xff\xff\x01", "ext claims length"),
    (b"\x91" * 5000, "nested more than 64 deep"),
    (b"\x81\xa1a" * 5000, "nested more than 64 deep"),
    (b"\xdd" + struct.pack(">I", 500_000) + b"\x80" * 500_000, "more than"),
    (b"\xc1", "begins no value"),
    (b"\xa2\xff\xfe", "not UTF-8"),
    (b"\x82\xa1a\xc0\xa1a\xc0", "'a' of a map is no string or comes twice"),
    (b"\x81\x01\xc0", "'1' of a map is no string"),
    (b"\x81\x90\xc0", "of a map is no string"),
    (b"\xc0\xc0", "1 bytes follow"),
    (b"", "ends early"),
  ],
)
def test_hostile_files_are_refused_in_little_memory(data, message):
  tracemalloc.start()
  try:
    with pytest.raises(CheckpointError, match=message):
      _read(data)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 100e6
