"""The input's contract: batch n is f(seed, n); every example counted once."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmoe_study.data import records
from vmoe_study.data.builders import make_builder
from vmoe_study.data.decoding import decode
from vmoe_study.data.device_ops import NO_LABEL
from vmoe_study.data.examples import ExampleReader
from vmoe_study.data.pipeline import eval_input, train_input
from vmoe_study.data.records import RecordError
from vmoe_study.data.sources import open_split
from vmoe_study.data.spec import DataSpec

JFT_CLASSES = 18_291


@pytest.fixture(scope="module")
def digits(data_dir):
  """`digits` with augmentation."""
  ops = "pad_crop(2)|randaug(1, 10)|value_range(-1, 1)"
  return DataSpec("digits", "train", ops, 10, data_dir)


@pytest.fixture(scope="module")
def plain(data_dir):
  """`digits` test images, unchanged."""
  return DataSpec("digits", "test", "value_range(0, 255)", 10, data_dir)


@pytest.fixture(scope="module")
def jpegs(data_dir):
  """`jft_like`: JPEGs with several labels."""
  ops = "inception_crop(32)|flip_lr|value_range(-1, 1)"
  return DataSpec("jft_like/40", "train", ops, JFT_CLASSES, data_dir)


def assert_same(a, b):
  """Equal keys and bit-identical arrays."""
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key])


def global_batches(spec, hosts, steps, **kwargs):
  """For each step the slices of all hosts, concatenated in host order."""
  inputs = [
    train_input(spec, process_index=host, process_count=hosts, **kwargs)
    for host in range(hosts)
  ]
  for step in steps:
    slices = [data[step] for data in inputs]
    yield {k: np.concatenate([s[k] for s in slices]) for k in slices[0]}


@pytest.mark.parametrize("which", ["digits", "jpegs"])
def test_global_batches_do_not_depend_on_the_hosts(which, request):
  spec = request.getfixturevalue(which)
  steps = (0, 1, 90)  # 90 is in a later epoch.
  expected, *others = (
    list(global_batches(spec, hosts, steps, batch_size=16, seed=7))
    for hosts in (1, 2, 4, 8)
  )
  for batches in others:
    for batch, same in zip(batches, expected, strict=True):
      assert_same(batch, same)
  size = 8 if which == "digits" else 32
  assert expected[0]["image"].shape[:3] == (16, size, size)


def test_batches_are_bytes_and_class_numbers(digits):
  data = train_input(digits, batch_size=12, seed=0)
  assert (data.num_examples, data.batch_size) == (1438, 12)
  assert data.image_shape == (8, 8, 1)
  batch = data[3]
  assert set(batch) == {"image", "label"}
  assert batch["image"].shape == (12, 8, 8, 1)
  assert batch["image"].dtype == np.uint8
  assert batch["label"].shape == (12,) and batch["label"].dtype == np.int32
  assert set(batch["label"]) <= set(range(10))


def test_seed_and_step_change_the_batch(digits):
  one = train_input(digits, batch_size=8, seed=1)
  two = train_input(digits, batch_size=8, seed=2)
  assert not np.array_equal(one[0]["image"], one[1]["image"])
  assert not np.array_equal(one[0]["image"], two[0]["image"])


def test_resuming_needs_only_the_step(digits):
  data = train_input(digits, batch_size=8, seed=1)
  run = list(itertools.islice(data.iterate(), 6))
  resumed = list(itertools.islice(data.iterate(4), 2))
  fresh = train_input(digits, batch_size=8, seed=1)
  for number in (4, 5):
    assert_same(run[number], resumed[number - 4])
    assert_same(run[number], fresh[number])


@pytest.mark.process
def test_worker_processes_change_nothing(digits):
  alone = train_input(digits, batch_size=8, seed=1)
  helped = train_input(digits, batch_size=8, seed=1, num_workers=2)
  batches = helped.iterate(5)
  for step in range(5, 9):
    assert_same(next(batches), alone[step])
  batches.close()


def test_every_epoch_is_another_permutation(data_dir):
  spec = DataSpec("digits", "test", "value_range(0, 255)", 10, data_dir)
  data = train_input(spec, batch_size=359, seed=0)
  source = open_split("digits", "test", data_dir)
  everything = sorted(
    decode(source[i]["image"], 1).tobytes() for i in range(359)
  )
  epochs = [
    [image.astype(np.uint8).tobytes() for image in data[n]["image"]]
    for n in range(3)
  ]
  assert all(sorted(epoch) == everything for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_augmentation_differs_between_epochs(jpegs):
  spec = dataclasses.replace(jpegs, split="train[:8]")
  data = train_input(spec, batch_size=8, seed=0)
  first = {image.tobytes() for image in data[0]["image"]}
  later = {image.tobytes() for n in (1, 2) for image in data[n]["image"]}
  assert not first & later


def test_mixture_holds_its_weights(data_dir):
  def part(split):
    ops = "value_range(0, 255)"
    return DataSpec("digits", split, ops, 10, data_dir)

  def pixels(split):
    source = open_split("digits", split, data_dir)
    return {decode(source[i]["image"], 1).tobytes() for i in range(len(source))}

  mixture = [(part("train"), 3.0), (part("test"), 1.0)]
  data = train_input(mixture, batch_size=40, seed=0)
  assert data.num_examples == 1797
  test = pixels("test")
  from_test = [
    sum(x.astype(np.uint8).tobytes() in test for x in data[n]["image"])
    for n in range(5)
  ]
  assert from_test == [10] * 5
  (again,) = global_batches(mixture, 4, [3], batch_size=40, seed=0)
  assert_same(again, data[3])


def test_mixed_parts_must_agree(digits, plain):
  with pytest.raises(ValueError, match="differ in value_range"):
    train_input([(digits, 1), (plain, 1)], batch_size=8, seed=0)
  larger = dataclasses.replace(digits, ops="resize(9)|value_range(-1, 1)")
  with pytest.raises(ValueError, match="differ in image shape"):
    train_input([(digits, 1), (larger, 1)], batch_size=8, seed=0)
  with pytest.raises(ValueError, match="must be positive"):
    train_input([(digits, 0)], batch_size=8, seed=0)


def test_label_smoothing_and_several_labels(jpegs):
  source = open_split("jft_like/40", "train", jpegs.data_dir)
  data = eval_input(
    dataclasses.replace(jpegs, ops="resize(8)", label_smoothing=0.1),
    batch_size=40,
  )
  (batch,) = data
  assert batch["label"].shape == (40, -(-JFT_CLASSES // 8))
  for i, row in enumerate(data.device_ops(batch)["label"]):
    expected = np.zeros(JFT_CLASSES)
    expected[source[i]["label"]] = 0.9
    np.testing.assert_allclose(row, expected + 0.1 / JFT_CLASSES, rtol=1e-5)


@given(
  hosts=st.sampled_from([1, 2, 3, 8]),
  per_host=st.integers(1, 60),
  count=st.integers(1, 100),
  seed=st.integers(0, 100),
)
@settings(max_examples=15, deadline=None)
def test_evaluation_counts_every_example_once(
  plain, hosts, per_host, count, seed
):
  indices = np.random.default_rng(seed).permutation(359)[:count]
  inputs = [
    eval_input(
      plain,
      batch_size=hosts * per_host,
      process_index=host,
      process_count=hosts,
      indices=indices,
    )
    for host in range(hosts)
  ]
  passes = [list(data) for data in inputs]
  assert {len(p) for p in passes} == {len(inputs[0])}
  seen = []
  for batches in zip(*passes, strict=True):
    for batch in batches:
      assert batch["image"].shape == (per_host, 8, 8, 1)
      assert batch["mask"].shape == (per_host,)
      real = batch["mask"] == 1
      assert not batch["image"][~real].any()
      assert (batch["label"][~real] == NO_LABEL).all()
      seen += [
        image.astype(np.uint8).tobytes() for image in batch["image"][real]
      ]
  prepared = open_split("digits", "test", plain.data_dir)
  assert seen == [
    decode(prepared[int(i)]["image"], 1).tobytes() for i in indices
  ]


def test_an_evaluation_can_be_repeated(plain):
  data = eval_input(plain, batch_size=100)
  assert len(data) == 4 and data.num_examples == 359
  first, second = list(data), list(data)
  for a, b in zip(first, second, strict=True):
    assert_same(a, b)
  assert sum(batch["mask"].sum() for batch in first) == 359


def test_evaluation_refuses_random_operations(digits):
  with pytest.raises(ValueError, match="must not draw random"):
    eval_input(digits, batch_size=8)


@pytest.fixture
def damaged(tmp_path):
  """A folder of 20 images; 3 is not an image, 7 is truncated, 11 is empty."""
  import cv2

  folder = tmp_path / "train" / "only"
  folder.mkdir(parents=True)
  for i in range(23):
    image = np.full((10, 12, 3), 10 * i, np.uint8)
    cv2.imwrite(str(folder / f"{i:02}.jpg"), image)
  (folder / "03.jpg").write_bytes(b"no image")
  (folder / "07.jpg").write_bytes((folder / "07.jpg").read_bytes()[:-20])
  (folder / "11.jpg").write_bytes(b"")
  return DataSpec(
    "image_folder", "train", "resize(8)", 1, str(tmp_path), on_error="skip"
  )


def test_damaged_examples_raise_and_are_named(damaged):
  spec = dataclasses.replace(damaged, on_error="raise")
  with pytest.raises(RecordError, match=r"only/03\.jpg: 8 bytes that are not"):
    list(eval_input(spec, batch_size=4))
  with pytest.raises(RecordError, match=r"(03|07|11)\.jpg: .* `doctor` finds"):
    train_input(spec, batch_size=23, seed=0)[0]
  for index, reason in ((7, r"07\.jpg: .*truncated"), (11, r"11\.jpg: 0 byte")):
    with pytest.raises(RecordError, match=reason):
      list(eval_input(spec, batch_size=1, indices=[index]))


def test_damaged_examples_are_skipped_and_counted(damaged):
  data = eval_input(damaged, batch_size=4)
  masks = np.concatenate([batch["mask"] for batch in data])
  assert np.flatnonzero(masks[:23] == 0).tolist() == [3, 7, 11]
  assert data.skipped == 3
  training = train_input(damaged, batch_size=23, seed=0)
  levels = np.round(training[0]["image"].mean((1, 2, 3)) / 10).astype(int)
  assert training.skipped == 3
  # The next file stands in: 4 for 3, 8 for 7 and 12 for 11.
  expected = [i + (i in (3, 7, 11)) for i in range(23)]
  assert sorted(levels) == sorted(expected)


def test_damaged_examples_are_named_once(damaged, caplog):
  reader = ExampleReader(damaged)
  for index in (3, 7, 3, 3):
    assert reader.read_or_mask(index)["skipped"] == 1
    assert reader.read_or_next(index, np.random.default_rng(0))["skipped"] == 1
  named = [m for m in caplog.messages if m.startswith("skipped: ")]
  assert ["03.jpg" in m for m in named] == [True, False]


def test_a_label_out_of_range_is_named_or_counted(plain):
  spec = dataclasses.replace(plain, num_classes=5)
  with pytest.raises(RecordError, match=r"record \d+: label=\d.* \[0, 5\)"):
    list(eval_input(spec, batch_size=50))
  data = eval_input(dataclasses.replace(spec, on_error="skip"), batch_size=50)
  counted = sum(batch["mask"].sum() for batch in data)
  labels = open_split("digits", "test", plain.data_dir).labels()
  assert (counted, data.skipped) == ((labels < 5).sum(), (labels >= 5).sum())


@pytest.mark.slow
def test_a_truncated_record_is_named_or_counted(tmp_path):
  make_builder("jft_like/4", str(tmp_path)).download_and_prepare(
    file_format="tfrecord"
  )
  (file,) = tmp_path.rglob("*jft_like-train*")
  file.write_bytes(file.read_bytes()[:-10])
  name, classes, folder = "jft_like/4", JFT_CLASSES, str(tmp_path)
  spec = DataSpec(name, "train", "resize(8)", classes, folder)
  for data in (
    eval_input(spec, batch_size=4),
    train_input(spec, batch_size=4, seed=0).iterate(),
  ):
    with pytest.raises(RecordError, match=r"record 3: .* truncated"):
      next(iter(data))
  skipping = dataclasses.replace(spec, on_error="skip")
  data = eval_input(skipping, batch_size=4)
  (batch,) = data
  assert batch["mask"].tolist() == [1, 1, 1, 0] and data.skipped == 1
  training = train_input(skipping, batch_size=4, seed=0)
  assert training[0]["image"].shape == (4, 8, 8, 3) and training.skipped == 1


def test_images_of_unequal_shape_are_named(jpegs):
  spec = dataclasses.replace(jpegs, ops="flip_lr")
  with pytest.raises(RecordError, match="Fix the shape with"):
    train_input(spec, batch_size=4, seed=0)[0]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"num_classes": 0}, "num_classes=0: "),
    ({"label_smoothing": 1.0}, "label_smoothing=1.0: "),
    ({"on_error": "ignore"}, "on_error='ignore': "),
    ({"ops": "blur"}, "unknown operation"),
  ],
)
def test_bad_specs_are_explained(plain, change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(plain, **change)


def test_bad_sizes_and_seeds_are_explained(plain):
  with pytest.raises(ValueError, match=r"split='test\[:0\]': is empty"):
    eval_input(dataclasses.replace(plain, split="test[:0]"), batch_size=8)
  with pytest.raises(ValueError, match="batch_size=10: "):
    train_input(plain, batch_size=10, seed=0, process_count=4)
  with pytest.raises(ValueError, match="seed=-1: "):
    train_input(plain, batch_size=8, seed=-1)


@pytest.mark.slow
def test_an_error_in_a_worker_process_reaches_the_consumer(damaged):
  spec = dataclasses.replace(damaged, on_error="raise")
  data = eval_input(spec, batch_size=2, num_workers=1)
  with pytest.raises(RecordError, match=r"03\.jpg"):
    list(data)


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_a_mixture_takes_the_examples_of_each_set_in_turn(
  shuffle, digits, monkeypatch
):
  monkeypatch.setattr(records, "BLOCK_BYTES", 4000)  # Some ten images.
  other = dataclasses.replace(digits, split="test")
  mixture = [(digits, 2.0), (other, 1.0)]
  data = train_input(mixture, batch_size=32, seed=0, shuffle=shuffle)
  assert data.parts.lanes > 1 or shuffle == "full"
  seen = collections.Counter(
    pair for step in range(80) for pair in data.examples(step)
  )
  sizes = {"digits[train]": 1438, "digits[test]": 359}
  for name, size in sizes.items():
    counts = {seen[name, i] for i in range(size)}
    assert max(counts) - min(counts) <= 1 and max(counts) >= 2
  assert {name for name, _ in seen} == {*sizes}
