"""Record files written by TensorFlow, on local and remote file systems."""

import functools
import http.server
import itertools
import pickle
import threading

import fsspec
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from vmoe_study.data import array_record_file, record_index
from vmoe_study.data import records as data_records
from vmoe_study.data.record_index import tfrecord_index
from vmoe_study.data.records import (
  FileSpan,
  LocalArrayRecords,
  RecordError,
  RemoteArrayRecords,
  TfRecords,
  open_array_records,
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
    write_array_records(folder / f"{shard}.array", "group_size:1", payloads)
  return folder


def spans(base, suffix="tfrecord"):
  """Records 3..9 of the first file, then 0..4 of the second."""
  return [
    FileSpan(f"{base}/0.{suffix}", 3, 7),
    FileSpan(f"{base}/1.{suffix}", 0, 5),
  ]


READERS = [
  (TfRecords, "tfrecord"),
  (LocalArrayRecords, "array"),
  (RemoteArrayRecords, "array"),
]


@pytest.mark.parametrize(("cls", "suffix"), READERS)
def test_spans_read_as_one_sequence(folder, cls, suffix):
  data = pickle.loads(pickle.dumps(cls(spans(folder, suffix))))
  assert len(data) == 12
  assert [data[i] for i in range(12)] == PAYLOADS[3:15]
  assert data.where(8) == f"{folder}/1.{suffix}, record 1"
  assert data.read([5, 6, 7, 8, 2, 11]) == [
    PAYLOADS[i] for i in (8, 9, 10, 11, 5, 14)
  ]
  assert data.blocks().tolist() == [0, 7, 12]  # Less than a block per file.


def test_memory_file_system(folder):
  memory = fsspec.filesystem("memory")
  memory.put(str(folder), "/records", recursive=True)
  for data in (
    TfRecords(spans("memory://records")),
    open_array_records(spans("memory://records", "array")),
  ):
    assert data.is_remote
    assert [data[i] for i in range(12)] == PAYLOADS[3:15]


def noise(count):
  rng = np.random.default_rng(0)
  return [rng.bytes(n) for n in rng.integers(10, 2000, count)]


def write_array_records(path, options, payloads):
  writer = ArrayRecordWriter(str(path), options)
  for payload in payloads:
    writer.write(payload)
  writer.close()
  return str(path)


OPTIONS = ["group_size:1,uncompressed", "group_size:7", "group_size:1"]


@pytest.mark.parametrize("options", OPTIONS)
def test_array_records_of_all_kinds_in_blocks(options, tmp_path, monkeypatch):
  """Many 64 KiB blocks; records of several chunks, or several per chunk."""
  monkeypatch.setattr(data_records, "BLOCK_BYTES", 100_000)
  monkeypatch.setattr(array_record_file, "TAIL", 2 * array_record_file.BLOCK)
  payloads = noise(40) * 100
  path = write_array_records(tmp_path / "records.array", options, payloads)
  data = RemoteArrayRecords([FileSpan(path, 5, 3990)])
  blocks = data.blocks()
  assert len(blocks) > 10 and blocks[0] == 0 and blocks[-1] == 3990
  for start, stop in itertools.pairwise(blocks.tolist()):
    assert data.read(range(start, stop)) == payloads[5 + start : 5 + stop]
  assert data.read([3, 2000, 2001]) == [payloads[i] for i in (8, 2005, 2006)]


def test_a_damaged_array_record_is_named(tmp_path):
  payloads = noise(10)
  path = write_array_records(tmp_path / "bad", "group_size:1", payloads)
  content = bytearray((tmp_path / "bad").read_bytes())
  content[content.index(payloads[6]) + 5] ^= 1
  (tmp_path / "bad").write_bytes(bytes(content))
  data = RemoteArrayRecords([FileSpan(path, 0, 10)])
  found = data.read(range(10))
  assert found[:6] + found[7:] == payloads[:6] + payloads[7:]
  with pytest.raises(RecordError, match=r"bad, record 6: .*hash mismatch"):
    data[6]


def test_a_file_that_is_no_array_record_file(folder):
  for name in ("0.tfrecord", "zeros"):
    (folder / "zeros").write_bytes(bytes(2**17))
    with pytest.raises(ValueError, match="no index of an ArrayRecord file"):
      RemoteArrayRecords([FileSpan(str(folder / name), 0, 1)])


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
  first = tfrecord_index(str(folder / "0.tfrecord"))
  target.write_bytes((folder / "0.tfrecord").read_bytes())
  old = tfrecord_index(str(target))
  target.write_bytes((folder / "1.tfrecord").read_bytes())
  new = tfrecord_index(str(target))
  assert len({first, old, new}) == 3
  assert tfrecord_index(str(target)) == new
  assert len(np.fromfile(new, np.int64)) == 11


def test_masked_crc_of_a_known_string():
  # crc32c("123456789") = 0xE3069283 is the check value of the algorithm.
  crc = 0xE3069283
  expected = ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
  assert record_index.masked_crc(b"123456789") == expected


def test_a_missing_file_and_one_that_cannot_be_opened(folder, monkeypatch):
  span = FileSpan(f"{folder}/missing.array", 0, 5)
  with pytest.raises(RecordError, match=r"missing.array, record 3: .*No such"):
    LocalArrayRecords([span])[3]

  def refuse(path, mode):
    raise PermissionError(13, "Permission denied", path)

  monkeypatch.setattr("builtins.open", refuse)
  with pytest.raises(PermissionError):  # Nothing is wrong with the record.
    LocalArrayRecords(spans(folder, "array"))[3]
