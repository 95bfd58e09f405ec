"""The MessagePack reader: what msgpack writes, and damaged or hostile files."""

import contextlib
import io
import tracemalloc

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.foreign.msgpack_reader import Reader, unpack

pytestmark = pytest.mark.fuzz

scalars = (
  st.none()
  | st.booleans()
  | st.integers(-(2**63), 2**64 - 1)
  | st.floats(allow_nan=False)
  | st.text()
  | st.binary()
  | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=40))
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


@fuzz
@given(values)
def test_reads_what_msgpack_writes(value):
  assert _read(msgpack.packb(value)) == value


@pytest.mark.parametrize("size", [15, 16, 31, 32, 255, 256, 65535, 65536])
def test_every_form_of_length(size):
  data = b"x" * size
  for value in ("x" * size, data, msgpack.ExtType(1, data)):
    assert _read(msgpack.packb(value)) == value


@pytest.mark.parametrize("size", [15, 16, 4096, 4097])
def test_lists_and_maps_have_at_most_4096_items(size):
  for value in ([1] * size, {str(i): None for i in range(size)}):
    if size <= 4096:
      assert _read(msgpack.packb(value)) == value
    else:
      with pytest.raises(CheckpointError, match="4097 exceeds max"):
        _read(msgpack.packb(value))


def test_a_map_is_read_key_by_key():
  packed = msgpack.packb({"a": [1], "b": 2})
  reader = Reader(io.BytesIO(packed), len(packed), "file")
  assert [(key, reader.value()) for key in reader.map_keys()] == [
    ("a", [1]),
    ("b", 2),
  ]
  reader.end()
  for data, message in (
    (b"\xc0", "not MessagePack"),
    (b"\x82\xa1a\xc0\xa1a\xc0", "'a' of a map is not a string or occurs twice"),
    (b"\x81\x01\xc0", "'1' of a map is not a string"),
    (b"\xdf\xff\xff\xff\xff", "more than 200000 values|exceeds"),
  ):
    reader = Reader(io.BytesIO(data), len(data), "file")
    with pytest.raises(CheckpointError, match=message):
      for _ in reader.map_keys():
        reader.value()


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
  packed = bytearray(msgpack.packb(value))
  position = data.draw(st.integers(0, len(packed) - 1))
  with pytest.raises(CheckpointError):
    _read(bytes(packed[:position]))
  packed[position] = data.draw(st.integers(0, 255))
  with contextlib.suppress(CheckpointError):
    _read(bytes(packed))


@pytest.mark.parametrize(
  "data,message",
  [
    (b"\xdd\xff\xff\xff\xff", "4294967295 exceeds max_array_len"),
    (b"\xdf\xff\xff\xff\xff" + b"\xc0" * 9, "4294967295 exceeds max_map_len"),
    (b"\xdb\x7f\xff\xff\xff", "early|incomplete|exceeds"),
    (b"\xc6\xff\xff\xff\xff", "early|incomplete|exceeds"),
    (b"\xc9\xff\xff\xff\xff\x01", "exceeds max_ext_len"),
    (b"\x91" * 5000, "nested more than 64 deep"),
    (b"\x91" * 66 + b"\xc0", "nested more than 64 deep"),
    (b"\x81\xa1a" * 5000, "nested more than 64 deep"),
    (b"\xdc\x10\x00" * 1024, "early|incomplete|nested"),
    (b"\xdc\x10\x00" + (b"\xdc\x10\x00" + b"\x80" * 4096) * 50, "more than"),
    (b"\xc1", "not MessagePack"),
    (b"\xa2\xff\xfe", "utf-8"),
    (b"\x82\xa1a\xc0\xa1a\xc0", "'a' of a map is not a string or occurs twice"),
    (b"\x81\xc4\x01a\xc0", "of a map is not a string"),
    (b"\x81\x01\xc0", "int.* is not allowed for map key"),
    (b"\x81\x90\xc0", "list.* is not allowed for map key"),
    (b"\xc0\xc0", "1 bytes follow"),
    (b"", "ends early|incomplete"),
  ],
)
@pytest.mark.parametrize("read", ["file", "payload"])
def test_hostile_files_are_refused_in_little_memory(read, data, message):
  tracemalloc.start()
  try:
    with pytest.raises(CheckpointError, match=message) as caught:
      _read(data) if read == "file" else unpack(data, "file")
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert str(caught.value).startswith("file: ")
  assert peak < 40e6
