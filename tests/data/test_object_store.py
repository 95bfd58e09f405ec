"""Training from a bucket: gs:// through gcsfs, with latency and faults."""

import dataclasses
import itertools
import os
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from vmoe_study.data import array_record_file, records
from vmoe_study.data.parts import EXAMPLES_AHEAD
from vmoe_study.data.pipeline import eval_input, train_input
from vmoe_study.data.read_ahead import ReadAhead
from vmoe_study.data.record_index import FOLDER
from vmoe_study.data.sources import make_indices, open_split
from vmoe_study.data.spec import DataSpec

from ..fake_gcs import fake_gcs
from .tfds_writer import write

pytestmark = pytest.mark.slow  # Starts servers, which are slow to answer.

COUNT, SHARDS, CLASSES = 600, 3, 6
FORMATS = ["tfrecord", "array_record"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A bucket with a small data set in both formats."""
  folder = tmp_path_factory.mktemp("store")
  features = {
    "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
    "label": tfds.features.ClassLabel(num_classes=CLASSES),
  }
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
  examples = [
    {"image": image, "label": i * CLASSES // COUNT}
    for i, image in enumerate(images)
  ]
  for name in FORMATS:
    place = folder / "bucket" / name
    write("tiny", features, examples, place, shards=SHARDS, file_format=name)
  return folder


@pytest.fixture
def store(folder, tmp_path, monkeypatch):
  """The bucket, with no index yet; blocks of about 10 examples."""
  monkeypatch.setattr(records, "BLOCK_BYTES", 2500)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  with fake_gcs(folder) as server:
    yield server
  for index in folder.rglob(FOLDER):
    shutil.rmtree(index)


def spec(place="gs://bucket/tfrecord"):
  return DataSpec("tiny", "train", "value_range(0, 1)", CLASSES, place)


def global_batches(steps, place="gs://bucket/tfrecord", hosts=1, **kwargs):
  """The images of each step's batch of all hosts, as bytes."""
  settings = {"batch_size": 48, "seed": 3} | kwargs
  inputs = [
    train_input(
      spec(place), process_index=host, process_count=hosts, **settings
    )
    for host in range(hosts)
  ]
  return [
    b"".join(data[step]["image"].tobytes() for data in inputs) for step in steps
  ]


def data_reads(server):
  """Reads of records: no metadata, and no index."""
  return [
    read
    for read in server.reads()
    if "tiny-train" in read[0] and FOLDER not in read[0]
  ]


@pytest.mark.parametrize("name", FORMATS)
def test_batches_do_not_depend_on_the_hosts_or_the_place(name, store, folder):
  local = str(folder / "bucket" / name)
  steps = (0, 1, 13)  # 13 is in the second epoch.
  expected = global_batches(steps, local, shuffle="blocks")
  for one, other in zip(expected, global_batches(steps, local), strict=True):
    assert one != other
  for hosts in (1, 2, 4, 8):
    found = global_batches(steps, f"gs://bucket/{name}", hosts)
    assert found == expected, hosts


def test_an_epoch_under_faults_has_every_example_once_in_few_requests(store):
  data = train_input(spec(), batch_size=40, seed=0)
  expected = global_batches(range(15), batch_size=40, seed=0)
  store.set(faults=0.1)
  batches = data.iterate()
  found = [next(batches)["image"] for _ in range(15)]
  assert store.faults() > 0
  batches.close()
  assert [batch.tobytes() for batch in found] == expected
  images = np.concatenate(found)
  assert len({image.tobytes() for image in images}) == len(images) == COUNT
  requests, _, _ = data.reading
  blocks = len(open_split("tiny", "train", "gs://bucket/tfrecord").blocks()) - 1
  # Cuts between the lanes divide some blocks, and the next epoch is read ahead.
  epochs = 1 + (2 * 40 + 2 * EXAMPLES_AHEAD) / COUNT
  assert requests < 1.3 * epochs * blocks


def test_a_resumed_run_reads_no_block_that_it_does_not_need(store):
  data = train_input(spec(), batch_size=40, seed=0)
  needed = {i for step in range(8, 15) for _, i in data.parts.examples(step)}
  source = open_split("tiny", "train", "gs://bucket/tfrecord")
  read = []
  part = data.parts.open(0, 1, examples_ahead=80)
  images = np.empty(data.parts.shape, np.uint8)
  (ahead,) = part._sources
  ahead._source = _Recording(ahead._source, read)
  for step in (8, 9):
    part(step, images)
  blocks = set(itertools.pairwise(source.blocks().tolist()))
  cut = [r for r in read if (r.start, r.stop) not in blocks]
  assert read and len(cut) <= 2 * data.parts.lanes
  assert all(needed & set(r) for r in read)
  assert len({i for r in read for i in r}) < COUNT


class _Recording:
  """A source that notes what is read."""

  def __init__(self, source, read):
    self._source, self._read = source, read

  def __getattr__(self, name):
    return getattr(self._source, name)

  def __len__(self):
    return len(self._source)

  def read(self, indices):
    self._read.append(indices)
    return self._source.read(indices)


def test_an_index_takes_one_pass_and_is_made_for_all_hosts(
  store, folder, tmp_path, monkeypatch
):
  size = sum(
    os.path.getsize(file)
    for file in (folder / "bucket" / "tfrecord").rglob("tiny-train*")
  )
  open_split("tiny", "train", "gs://bucket/tfrecord")
  assert sum(read[2] for read in data_reads(store)) <= 1.02 * size
  open_split("tiny", "train", "gs://bucket/tfrecord")
  assert not data_reads(store)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of another host"))
  other = open_split("tiny", "train", "gs://bucket/tfrecord")
  assert not data_reads(store)
  assert len(other) == COUNT


def test_indices_of_read_only_data_are_shared_elsewhere(
  store, tmp_path, monkeypatch
):
  """Two hosts make half of them each, then take those of the other."""
  store.set(read_only=True)
  for host in range(2):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"host {host}"))
    make_indices(spec(), host, 2, str(tmp_path / "workdir"))
    assert len({read[0] for read in data_reads(store)}) in (1, 2)
  for host in range(2):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"host {host}"))
    make_indices(spec(), 0, 1, str(tmp_path / "workdir"))
    open_split("tiny", "train", "gs://bucket/tfrecord")
    assert not data_reads(store)
  assert len(list((tmp_path / "workdir").iterdir())) == SHARDS


def test_array_records_have_an_index(store, folder, monkeypatch):
  monkeypatch.setattr(array_record_file, "TAIL", array_record_file.BLOCK)
  size = sum(
    os.path.getsize(file)
    for file in (folder / "bucket" / "array_record").rglob("tiny-train*")
  )
  open_split("tiny", "train", "gs://bucket/array_record")
  reads = data_reads(store)
  assert sum(read[2] for read in reads) < 0.7 * size


def test_an_evaluation_reads_neighbours_together(store):
  data = eval_input(spec("gs://bucket/array_record"), batch_size=100)
  source = open_split("tiny", "train", "gs://bucket/array_record")
  expected = source.labels()
  store.reads()
  labels = np.concatenate([batch["label"] for batch in data])
  np.testing.assert_array_equal(labels, expected)
  assert len(data_reads(store)) < COUNT / 20


def test_a_damaged_record_in_a_block_is_skipped_alone(folder, tmp_path):
  shutil.copytree(folder / "bucket" / "tfrecord", tmp_path / "bad")
  (file, *_) = sorted((tmp_path / "bad").rglob("tiny-train*"))
  content = bytearray(file.read_bytes())
  content[len(content) // 2 + 30] ^= 1  # Of the data of a record.
  file.write_bytes(bytes(content))
  bad = dataclasses.replace(spec(str(tmp_path / "bad")), on_error="skip")
  data = train_input(bad, batch_size=40, seed=0, shuffle="blocks")
  batches = data.iterate()
  for _ in range(15):
    next(batches)
  batches.close()
  assert data.skipped == 1


def test_what_is_held_in_memory_is_bounded(folder):
  """No more than the windows of the steps that are being read."""
  local = str(folder / "bucket" / "tfrecord")
  data = train_input(spec(local), batch_size=8, seed=0, shuffle="blocks")
  part = data.parts.open(0, 2, examples_ahead=16)
  images = np.empty(data.parts.shape, np.uint8)
  (ahead,) = part._sources
  assert isinstance(ahead, ReadAhead)
  order = data.parts.orders[0]
  for step in range(300):  # Four epochs.
    part(step, images)
    windows = {
      order.window(data.parts.position(s, row)[1])[0]
      for s in range(step, step + 5)
      for row in data.parts.rows.of(0, 2)
    }
    expected = {run for window in windows for run in window.runs}
    assert set(ahead._runs) == expected
    assert len(ahead._run_of) <= sum(b - a for a, b in expected)
