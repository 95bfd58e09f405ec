"""Data sets that users wrote with TFDS: versions, labels, images, files."""

import os
import resource
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tests.data.tfds_writer import write
from vmoe_study.data import builders, records
from vmoe_study.data.builders import MissingDataError
from vmoe_study.data.decoding import decode
from vmoe_study.data.pipeline import train_input
from vmoe_study.data.sources import open_split
from vmoe_study.data.spec import DataSpec

F = tfds.features
RGB = F.Image(shape=(None, None, 3))


def _image(value, channels=3, dtype=np.uint8):
  return np.full((8, 8, channels), value, dtype)


def _examples(label, count=6):
  return [{"image": _image(i), "label": label(i)} for i in range(count)]


def test_a_version_keeps_the_label_key(tmp_path):
  labels = F.Sequence(F.ClassLabel(num_classes=1000))
  features = {"image": RGB, "real_label": labels}
  examples = [{"image": _image(i), "real_label": [i] * i} for i in range(3)]
  write("imagenet2012_real", features, examples, tmp_path, split="validation")
  for name in ("imagenet2012_real", "imagenet2012_real:1.0.0"):
    source = open_split(name, "validation", str(tmp_path))
    assert source.label_key == "real_label"
    assert len(source) == 3 and source.num_classes == 1000


def test_a_version_keeps_the_manual_files_and_the_builder(tmp_path):
  name = "fashion_mnist:3.0.1"
  with pytest.raises(MissingDataError, match="needs train-images"):
    builders.prepare(name, str(tmp_path / "new"), str(tmp_path))
  folder = str(tmp_path / "digits")
  assert len(open_split("digits:1.0.0", "test", folder)) == 359
  info = builders.prepare("digits:1.*.*", folder).info
  assert info.full_name == "digits/1.0.0"
  with pytest.raises(MissingDataError, match=r"builds version 1\.0\.0 only"):
    builders.prepare("digits:7.0.0", folder)


def test_what_is_stored_is_listed(tmp_path):
  features = {"image": RGB, "label": F.ClassLabel(num_classes=6)}
  folder = write("flowers", features, _examples(int), tmp_path, version="1.2.0")
  assert len(open_split("flowers", "train", str(tmp_path))) == 6
  assert len(open_split("flowers:1.2.0", "train", str(tmp_path))) == 6
  shutil.copytree(folder, tmp_path / "flowers" / "large" / "2.0.0")
  for name in ("flowers:3.0.0", "flowers/small"):
    with pytest.raises(MissingDataError) as caught:
      open_split(name, "train", str(tmp_path))
    assert "It has flowers:1.2.0, flowers/large:2.0.0." in str(caught.value)
  with pytest.raises(MissingDataError, match="Did you mean 'flowers'"):
    open_split("flower", "train", str(tmp_path))


def test_data_without_features_says_how_to_add_them(tmp_path):
  features = {"image": RGB, "label": F.ClassLabel(num_classes=6)}
  folder = write("old", features, _examples(int), tmp_path)
  (folder / "features.json").unlink()
  with pytest.raises(MissingDataError) as caught:
    open_split("old", "train", str(tmp_path))
  message = str(caught.value)
  assert "1.0.0 has no features.json" in message
  assert "prepare" not in message
  # What it says helps.
  assert f".save_config({str(folder)!r})" in message
  F.FeaturesDict(features).save_config(str(folder))
  assert len(open_split("old", "train", str(tmp_path))) == 6


def test_integers_are_labels_if_the_config_says_how_many(tmp_path):
  features = {"image": RGB, "label": F.Scalar(dtype=np.int64)}
  write("numbers", features, _examples(lambda i: i % 3), tmp_path)
  spec = DataSpec("numbers", "train", "resize(8)", 3, str(tmp_path))
  data = train_input(spec, batch_size=6, seed=0)
  assert data.class_names == ()
  assert np.bincount(data[0]["label"]).tolist() == [2, 2, 2]
  source = open_split("numbers", "train", str(tmp_path))
  assert sorted(source.labels()) == [0, 0, 1, 1, 2, 2]
  with pytest.raises(ValueError, match=r"numbers-train.*Set num_classes"):
    _ = source.num_classes


def test_lists_of_integers_are_labels(tmp_path):
  label = F.Sequence(F.Scalar(dtype=np.int32))
  features = {"image": RGB, "label": label}
  write("lists", features, _examples(lambda i: [0] * i), tmp_path)
  spec = DataSpec("lists", "train", "resize(8)", 3, str(tmp_path))
  data = train_input(spec, batch_size=6, seed=0)
  assert data.device_ops(data[0])["label"].sum() == 5


@pytest.mark.parametrize(
  ("label", "value"),
  [
    (F.Text(), "a"),
    (F.Scalar(dtype=np.float32), 1.0),
    (F.Sequence({"id": F.Scalar(dtype=np.int64)}), [{"id": 1}]),
    (F.FeaturesDict({"id": F.Scalar(dtype=np.int64)}), {"id": 1}),
  ],
)
def test_other_labels_are_refused_by_name(tmp_path, label, value):
  features = {"image": RGB, "label": label}
  write("odd", features, _examples(lambda i: value, 1), tmp_path)
  message = "name='odd': feature 'label' is .*Set label_key"
  with pytest.raises(ValueError, match=message):
    open_split("odd", "train", str(tmp_path))


@pytest.mark.parametrize(
  "feature",
  [
    F.Image(shape=(8, 8, 1)),
    F.Image(shape=(8, 8, 4)),
    F.Image(),
    F.Tensor(shape=(8, 8, 1), dtype=np.uint8),
    F.Tensor(shape=(8, 8, 3), dtype=np.uint8, encoding="zlib"),
  ],
  ids=str,
)
def test_images_of_bytes_are_read(tmp_path, feature):
  channels = feature.shape[-1] or 3
  value = _image(200, channels)
  if channels == 4:
    value[..., 3] = 255
  features = {"image": feature, "label": F.ClassLabel(num_classes=2)}
  write("bytes", features, [{"image": value, "label": 1}], tmp_path)
  source = open_split("bytes", "train", str(tmp_path))
  image = decode(source[0]["image"], source.channels)
  assert image.shape == (8, 8, min(channels, 3)) and (image == 200).all()


@pytest.mark.parametrize(
  "feature",
  [
    F.Image(shape=(8, 8, 1), dtype=np.uint16),
    F.Image(shape=(8, 8, 1), dtype=np.float32),
    F.Tensor(shape=(8, 8, 1), dtype=np.float32),
  ],
  ids=str,
)
def test_other_images_are_refused_by_name(tmp_path, feature):
  dtype = np.dtype(feature.np_dtype).type
  features = {"image": feature, "label": F.ClassLabel(num_classes=2)}
  example = {"image": _image(1, 1, dtype), "label": 1}
  write("deep", features, [example], tmp_path)
  with pytest.raises(ValueError, match="name='deep': feature 'image' is"):
    open_split("deep", "train", str(tmp_path))


@pytest.fixture
def few_files():
  """A process that may open few more files, but may raise the limit."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

  def limit():
    few = 40 + max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))

  yield limit
  resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_record_files_than_the_soft_limit(tmp_path, few_files):
  features = {"image": RGB, "label": F.ClassLabel(num_classes=3)}
  examples = _examples(lambda i: i % 3, 120)
  write("many", features, examples, tmp_path, shards=120)
  few_files()
  source = open_split("many", "train", str(tmp_path))
  assert np.bincount(source.labels()).tolist() == [40, 40, 40]


def test_more_record_files_than_may_be_opened(monkeypatch):
  monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 1024))
  with pytest.raises(OSError, match="1100 record files.*1024.*ulimit"):
    records.allow_open_files(1100)
