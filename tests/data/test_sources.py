"""Prepared data sets and image folders, read example by example."""

import pickle

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from vmoe_study.data.builders import MissingDataError, make_builder
from vmoe_study.data.datasets import digits as digits_builder
from vmoe_study.data.decoding import decode
from vmoe_study.data.records import LocalArrayRecords, RecordError, TfRecords
from vmoe_study.data.sources import open_split


def test_digits_are_scikit_learns_images(data_dir):
  digits = load_digits()
  known = {
    np.rint(image * 255 / 16).astype(np.uint8).tobytes(): label
    for image, label in zip(digits.images, digits.target, strict=True)
  }
  seen = set()
  for split, size in (("train", 1438), ("test", 359)):
    source = open_split("digits", split, data_dir)
    assert len(source) == size
    assert (source.num_classes, source.channels) == (10, 1)
    counts = np.bincount(source.labels())
    share = counts / np.bincount(digits.target)
    np.testing.assert_allclose(share, size / 1797, atol=0.01)  # stratified
    for i in range(size):
      example = source[i]
      pixels = decode(example["image"], 1).tobytes()
      assert known[pixels] == example["label"]
      seen.add(pixels)
  assert len(seen) == len(known)


def test_split_expressions(data_dir):
  whole = open_split("digits", "train", data_dir)
  part = open_split("digits", "train[10:20]+train[:5]", data_dir)
  assert len(part) == 15
  assert part[0] == whole[10] and part[14] == whole[4]
  assert pickle.loads(pickle.dumps(part))[3] == whole[13]


@pytest.fixture(scope="module")
def both_formats(tmp_path_factory):
  """`jft_like/30` as TFRecord and as ArrayRecord, three shards each."""
  folders = {}
  for name in ("tfrecord", "array_record"):
    folders[name] = str(tmp_path_factory.mktemp(name))
    make_builder("jft_like/30", folders[name]).download_and_prepare(
      download_config=tfds.download.DownloadConfig(num_shards=3),
      file_format=name,
    )
  return {
    name: open_split("jft_like/30", "train", folder)
    for name, folder in folders.items()
  }


def test_both_formats_hold_the_same(both_formats):
  tfrecord, array_record = (
    both_formats["tfrecord"],
    both_formats["array_record"],
  )
  assert isinstance(tfrecord.records, TfRecords)
  assert isinstance(array_record.records, LocalArrayRecords)
  assert len(tfrecord) == len(array_record) == 30
  for i in range(30):
    assert tfrecord[i]["image"] == array_record[i]["image"]
    np.testing.assert_array_equal(
      tfrecord[i]["label"], array_record[i]["label"]
    )
  assert "00000-of-00003, record 0" in tfrecord.where(0)


def test_tfds_itself_reads_the_same(both_formats):
  import tensorflow as tf

  source = both_formats["tfrecord"]
  folder = source.where(0).rpartition("/")[0]
  dataset = tfds.builder_from_directory(folder).as_dataset(
    split="train", decoders={"image": tfds.decode.SkipDecoding()}
  )
  for i, example in enumerate(tfds.as_numpy(dataset)):
    assert source[i]["image"] == example["image"]
    theirs = tf.io.decode_jpeg(example["image"], dct_method="INTEGER_ACCURATE")
    np.testing.assert_array_equal(decode(source[i]["image"]), theirs)
    np.testing.assert_array_equal(source[i]["label"], example["label"])


def test_several_labels_per_image(both_formats):
  source = both_formats["tfrecord"]
  assert source.num_classes == 18_291
  sizes = [len(source[i]["label"]) for i in range(30)]
  assert min(sizes) >= 1
  with pytest.raises(ValueError, match="several labels per image"):
    source.labels()


def test_labels_are_read_once_for_each_state_of_the_files(
  tmp_path, monkeypatch
):
  def prepare(folder, seed):
    monkeypatch.setattr(digits_builder, "SPLIT_SEED", seed)
    make_builder("digits", str(tmp_path / folder)).download_and_prepare(
      file_format="array_record"
    )
    return open_split("digits", "train[:300]", str(tmp_path / folder))

  def read_nothing(self, indices):
    raise AssertionError("the labels were cached")

  first, second = prepare("first", 0), prepare("second", 1)
  expected = [
    np.asarray([source[i]["label"] for i in range(300)])
    for source in (first, second)
  ]
  assert (expected[0] != expected[1]).any()
  for source, labels in zip((first, second), expected, strict=True):
    np.testing.assert_array_equal(source.labels(), labels)
    assert source.labels().dtype == np.int64
  with monkeypatch.context() as patch:
    patch.setattr(type(first.records), "read", read_nothing)
    np.testing.assert_array_equal(first.labels(), expected[0])
    part = open_split("digits", "train[:200]", str(tmp_path / "first"))
    with pytest.raises(AssertionError):
      part.labels()  # Another part is not what was cached.
  # Other files in the same place are read anew.
  (old,) = (tmp_path / "first").rglob("*digits-train*")
  (new,) = (tmp_path / "second").rglob("*digits-train*")
  new.replace(old)
  source = open_split("digits", "train[:300]", str(tmp_path / "first"))
  np.testing.assert_array_equal(source.labels(), expected[1])


def test_a_record_of_something_else_is_named(both_formats):
  class Noise(LocalArrayRecords):
    def read(self, indices):
      return [b"\xff\xff noise" for _ in indices]

  source = both_formats["array_record"]
  noise = Noise(source.records._spans)
  broken = type(source)(noise, source.features, source.label_key)
  with pytest.raises(RecordError, match=r"record 2: not an example"):
    broken[2]


def test_missing_data_names_the_command(tmp_path):
  with pytest.raises(MissingDataError) as error:
    open_split("fashion_mnist", "train", str(tmp_path))
  command = f"python -m vmoe_study prepare fashion_mnist --data-dir={tmp_path}"
  assert command in str(error.value)
  assert not list(tmp_path.iterdir())


def test_digits_are_built_on_first_use(tmp_path):
  assert len(open_split("digits", "test", str(tmp_path))) == 359


@pytest.mark.parametrize(
  ("split", "label_key", "message"),
  [
    ("valid", None, "split='valid': .* Choose one of train, test, or"),
    ("train", "labels", "no feature 'labels'. Choose one of image, label"),
  ],
)
def test_wrong_names_list_the_right_ones(data_dir, split, label_key, message):
  with pytest.raises(ValueError, match=message):
    open_split("digits", split, data_dir, label_key)


@pytest.fixture
def folder(tmp_path):
  """Two classes, b before c, and files of other kinds."""
  for name, count in (("c", 2), ("b", 3)):
    (tmp_path / "train" / name).mkdir(parents=True)
    for i in range(count):
      level = 10 * i + (100 if name == "c" else 0)
      image = np.full((6, 5, 3), level, np.uint8)
      cv2.imwrite(str(tmp_path / "train" / name / f"{i}.png"), image)
  (tmp_path / "train" / "b" / "notes.txt").write_text("no image")
  return tmp_path


def test_image_folder(folder):
  source = open_split("image_folder", "train", str(folder))
  assert source.class_names == ("b", "c")
  assert source.labels().tolist() == [0, 0, 0, 1, 1]
  levels = [int(decode(source[i]["image"])[0, 0, 0]) for i in range(5)]
  assert levels == [0, 10, 20, 100, 110]
  assert source.where(3).endswith("train/c/0.png")


def test_a_missing_image_folder_is_explained(folder):
  with pytest.raises(ValueError, match="SPLIT/CLASS"):
    open_split("image_folder", "test", str(folder))
  with pytest.raises(ValueError, match="data_dir=None: .* Set data_dir"):
    open_split("image_folder", "train")
