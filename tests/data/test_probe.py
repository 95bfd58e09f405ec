"""A data set is described from a sample of its examples."""

import dataclasses

import pytest
import tensorflow_datasets as tfds

from vmoe_study.data import probe as probe_lib
from vmoe_study.data.builders import make_builder
from vmoe_study.data.probe import probe
from vmoe_study.data.spec import DataSpec


def test_it_tells_sizes_classes_and_labels(data_dir):
  spec = DataSpec("digits", "test", "resize(6)", 10, data_dir)
  found = probe(spec)
  assert (found.num_examples, found.num_classes, found.num_read) == (
    359,
    10,
    359,
  )
  assert found.image_shape == (6, 6, 1)
  assert (found.label_range, found.num_labels_seen) == ((0, 9), 10)
  assert found.most_labels == 1 and not found.damaged
  bad = probe(dataclasses.replace(spec, num_classes=9))
  assert len(bad.damaged) == 36 and bad.label_range == (0, 8)


def test_several_labels_per_image(data_dir):
  spec = DataSpec("jft_like/40", "train", "resize(8)", 18_291, data_dir)
  assert probe(spec).most_labels > 1


def test_the_cut_end_of_any_file_is_found(tmp_path, monkeypatch):
  """Even if few examples of a large data set are read."""
  monkeypatch.setattr(probe_lib, "EXAMPLES", 2)
  make_builder("jft_like/30", str(tmp_path)).download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=3),
    file_format="tfrecord",
  )
  spec = DataSpec("jft_like/30", "train", "resize(8)", 18_291, str(tmp_path))
  whole = probe(spec)
  assert whole.num_read < 6 and not whole.damaged
  (second,) = tmp_path.rglob("*train*00001-of-00003")
  second.write_bytes(second.read_bytes()[:-10])
  (error,) = probe(spec).damaged
  assert "00001-of-00003, record 9: " in error and "truncated" in error


def test_nothing_readable_is_an_error(tmp_path):
  folder = tmp_path / "train" / "only"
  folder.mkdir(parents=True)
  for i in range(3):
    (folder / f"{i}.jpg").write_bytes(b"no image")
  spec = DataSpec("image_folder", "train", "resize(8)", 1, str(tmp_path))
  with pytest.raises(ValueError, match=r"damaged examples in a row"):
    probe(spec)
