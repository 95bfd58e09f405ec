"""Record files written by TensorFlow, on local and remote file systems."""

import functools
import http.server
import pickle
import threading

import fsspec
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from vmoe_study.data import records
from vmoe_study.data.records import (
  ArrayRecords,
  FileSpan,
  RecordError,
  TfRecords,
)

PAYLOADS = [bytes([i]) * (1 + 37 * i) for i in range(20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Two TFRecord files and two ArrayRecord files of ten payloads each."""
  import tensorflow as tf

  folder = tmp_path_factory.mktemp("records")
  for shard in range(2):
    payloads = PAYLOADS[10 * shard : 10 * shard + 10]
    with tf.io.TFRecordWriter(str(folder / f"{shard}.tfrecord")) as writer:
      for payload in payloads:
        writer.write(payload)
    writer = ArrayRecordWriter(str(folder / f"{shard}.array"), "group_size:1")
    for payload in payloads:
      writer.write(payload)
    writer.close()
  return folder


def spans(base, suffix="tfrecord"):
  """Records 3..9 of the first file, then 0..4 of the second."""
  return [
    FileSpan(f"{base}/0.{suffix}", 3, 7),
    FileSpan(f"{base}/1.{suffix}", 0, 5),
  ]


@pytest.mark.parametrize(
  ("cls", "suffix"), [(TfRecords, "tfrecord"), (ArrayRecords, "array")]
)
def test_spans_read_as_one_sequence(folder, cls, suffix):
  data = pickle.loads(pickle.dumps(cls(spans(folder, suffix))))
  assert len(data) == 12
  assert [data[i] for i in range(12)] == PAYLOADS[3:15]
  assert data.where(8) == f"{folder}/1.{suffix}, record 1"


def test_memory_file_system(folder):
  memory = fsspec.filesystem("memory")
  memory.put(str(folder), "/records", recursive=True)
  data = TfRecords(spans("memory://records"))
  assert [data[i] for i in range(12)] == PAYLOADS[3:15]


class RangeHandler(http.server.SimpleHTTPRequestHandler):
  """Serves byte ranges and counts the bytes sent."""

  sent: list[int] = []  # noqa: RUF012

  def log_message(self, *args):
    """Keeps the test's output clean."""

  def do_GET(self):
    with open(self.translate_path(self.path), "rb") as file:
      data = file.read()
    total, asked = len(data), self.headers.get("Range")
    self.send_response(206 if asked else 200)
    if asked:
      begin, _, end = asked.removeprefix("bytes=").partition("-")
      last = min(int(end or total), total - 1)
      data = data[int(begin) : last + 1]
      self.send_header("Content-Range", f"bytes {begin}-{last}/{total}")
    self.sent.append(len(data))
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def do_HEAD(self):
    with open(self.translate_path(self.path), "rb") as file:
      size = len(file.read())
    self.send_response(200)
    self.send_header("Accept-Ranges", "bytes")
    self.send_header("Content-Length", str(size))
    self.end_headers()


def test_http_reads_only_the_record(folder):
  pytest.importorskip("aiohttp")
  handler = functools.partial(RangeHandler, directory=str(folder))
  with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
      data = TfRecords(spans(f"http://localhost:{server.server_port}"))
      assert [data[i] for i in range(12)] == PAYLOADS[3:15]
      RangeHandler.sent.clear()
      assert data[11] == PAYLOADS[14]
      assert RangeHandler.sent == [len(PAYLOADS[14]) + 16]
    finally:
      server.shutdown()


def copy_with(folder, target, change):
  """Copies 0.tfrecord to `target` with its bytes changed."""
  data = bytearray((folder / "0.tfrecord").read_bytes())
  target.write_bytes(bytes(change(data)))
  return TfRecords([FileSpan(str(target), 0, 10)])


def flip(position):
  """Flips one bit."""

  def change(data):
    data[position] ^= 1
    return data

  return change


def test_a_flipped_bit_is_found_and_the_record_named(folder, tmp_path):
  # Record 1 begins at 17 = 12 + 1 + 4; its data 12 bytes later.
  data = copy_with(folder, tmp_path / "bad", flip(17 + 12 + 3))
  assert data[0] == PAYLOADS[0] and data[2] == PAYLOADS[2]
  with pytest.raises(
    RecordError, match=r"bad, record 1: the checksum of the d"
  ):
    data[1]


def test_a_damaged_length_is_found(folder, tmp_path):
  with pytest.raises(RecordError, match=r"bad, record 1: .*length is wrong"):
    copy_with(folder, tmp_path / "bad", flip(17))


def test_a_truncated_record_is_named(folder, tmp_path):
  data = copy_with(folder, tmp_path / "bad", lambda data: data[:-9])
  assert data[8] == PAYLOADS[8]
  with pytest.raises(RecordError, match=r"bad, record 9: .* truncated"):
    data[9]


def test_a_rewritten_file_gets_a_new_index(folder, tmp_path):
  target = tmp_path / "file"
  first = records.offset_index(str(folder / "0.tfrecord"))
  target.write_bytes((folder / "0.tfrecord").read_bytes())
  old = records.offset_index(str(target))
  target.write_bytes((folder / "1.tfrecord").read_bytes())
  new = records.offset_index(str(target))
  assert len({first, old, new}) == 3
  assert records.offset_index(str(target)) == new
  assert len(np.fromfile(new, np.int64)) == 11


def test_array_records_are_local_only():
  with pytest.raises(ValueError, match="Mount the bucket"):
    ArrayRecords([FileSpan("gs://bucket/x.array_record", 0, 1)])


def test_masked_crc_of_a_known_string():
  # crc32c("123456789") = 0xE3069283 is the check value of the algorithm.
  crc = 0xE3069283
  expected = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
  assert records.masked_crc(b"123456789") == expected
