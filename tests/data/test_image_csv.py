"""Images that a CSV file lists: as they are in the file, or an error's line."""

import dataclasses
import pickle
import shutil

import cv2
import fsspec
import numpy as np
import pytest

from vmoe_study.data.examples import ExampleReader
from vmoe_study.data.pipeline import eval_input, train_input
from vmoe_study.data.records import RecordError
from vmoe_study.data.sources import open_split
from vmoe_study.data.spec import DataSpec
from vmoe_study.files import ranges

from ..fake_gcs import fake_gcs

LEVELS = {"a.png": 10, "b.png": 60, "deep/c.png": 110, "d, e.png": 160}


@pytest.fixture
def photos(tmp_path):
  """A folder with images, whose levels tell which they are."""
  folder = tmp_path / "photos"
  (folder / "deep").mkdir(parents=True)
  for name, level in LEVELS.items():
    cv2.imwrite(str(folder / name), np.full((4, 4, 3), level))
  return folder


def spec(folder, split="train", **fields):
  fields = {"num_classes": 3} | fields
  data_dir = str(folder)
  return DataSpec("image_csv", split, "resize(4)", data_dir=data_dir, **fields)


def read(folder, split="train"):
  """(level, labels) of every example, as a run reads them."""
  reader = ExampleReader(spec(folder, split))
  examples = [reader.read(i) for i in range(len(reader.source))]
  return [(int(e["image"][0, 0, 0]), e["labels"].tolist()) for e in examples]


def test_one_class_per_image(photos):
  (photos / "sub").mkdir()
  text = f"""label ,note,image
dog,,a.png
cat,"a ""note""
of two lines",../photos/deep/c.png

dog,, "d, e.png"
cat,,{photos / "b.png"}
"""
  (photos / "train.csv").write_text(text, encoding="utf-8-sig")
  assert read(photos) == [(10, [1]), (110, [0]), (160, [1]), (60, [0])]
  source = open_split("image_csv", "train", str(photos))
  assert source.class_names == ("cat", "dog") and not source.many_labels
  assert source.labels().tolist() == [1, 0, 1, 0]
  assert source.where(2) == (f"{photos}/d, e.png ({photos}/train.csv, line 6)")
  assert not source.is_remote
  assert pickle.loads(pickle.dumps(source))[0] == source[0]


def test_any_number_of_classes_per_image(photos):
  text = "image,labels\na.png,dog | cat\nb.png,\ndeep/c.png,sea|sea\n"
  (photos / "train.csv").write_text(text)
  assert read(photos) == [(10, [1, 0]), (60, []), (110, [2])]
  source = open_split("image_csv", "train", str(photos))
  assert source.many_labels
  with pytest.raises(ValueError, match="has several labels per image"):
    source.labels()
  data = train_input(spec(photos), batch_size=3, seed=0)
  batch = data.device_ops(data[0])
  found = {
    int(image[0, 0, 0]): label.tolist()
    for image, label in zip(batch["image"], batch["label"], strict=True)
  }
  assert found == {10: [1, 1, 0], 60: [0, 0, 0], 110: [0, 0, 1]}


def test_another_column_and_another_split(photos):
  text = "image,label,kind\na.png,dog,x\nb.png,cat,y\n"
  (photos / "train.csv").write_text(text)
  (photos / "test.csv").write_text("image,label\nb.png,dog\n")
  train = train_input(spec(photos), batch_size=2, seed=0)
  test = eval_input(
    spec(photos, "test"), batch_size=1, class_names=train.class_names
  )
  (batch,) = test
  label = test.device_ops(batch)["label"]
  assert label.tolist() == [[0, 1, 0]]  # As in training.
  assert "no images of class 'cat'" in test.notes[0]
  source = open_split("image_csv", "train", str(photos), "kind")
  assert source.class_names == ("x", "y")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "line 1: there is no column 'image'; the header has nothing"),
    ("image;label\n", "line 1: there is no column 'image'; .* 'image;label'"),
    ("image,class\n", "line 1: there must be one column 'label' or 'labels'"),
    ("image,label,labels\n", "line 1: there must be one column 'label' or"),
    ("image,label,image\n", "line 1: two columns have the same name"),
    ("image,label\n", "has a header only"),
    ("image,label\na.png,cat\nd, e.png,cat\n", "line 3: has 3 columns, .* 2"),
    ("image,label\na.png,cat\nb.png\n", "line 3: has 1 columns, .* 2"),
    ("image,label\na.png,\n", "line 2: label='': a label is empty"),
    ("image,labels\na.png,cat||sea\n", "line 2: labels='cat||sea': a label"),
    ("image,label\n ,cat\n", "line 2: image='': must be a path"),
    ("image,label\nhttp://x/a.png,cat\n", "line 2: image='http.* gs://"),
    ('image,label\na.png,cat\nb.png,"cat\n', "line 3: unexpected end"),
    (b"image,label\na.png,cat\nb.png,k\xe4fer\n", "line 3: is not UTF-8"),
  ],
)
def test_errors_name_the_line(photos, text, message):
  content = text if isinstance(text, bytes) else text.encode()
  (photos / "train.csv").write_bytes(content)
  with pytest.raises(ValueError, match=f"photos/train.csv.*{message}"):
    open_split("image_csv", "train", str(photos))


def test_missing_files_are_named(photos):
  names = ["a.png", "no.png", "deep", "none/a.png", "deep/no.png", "b.png/"]
  lines = [f"{name},cat" for name in names]
  (photos / "train.csv").write_text("\n".join(["image,label", *lines]))
  with pytest.raises(ValueError) as error:
    open_split("image_csv", "train", str(photos))
  assert str(error.value).startswith(
    f"{photos}/train.csv: 4 of 6 images do not exist: "
    f"line 3 ({photos}/no.png), line 5 ({photos}/none/a.png), "
    f"line 6 ({photos}/deep/no.png) and others. "
  )
  with pytest.raises(ValueError, match=r"test\.csv: cannot be read: No such"):
    open_split("image_csv", "test", str(photos))
  with pytest.raises(ValueError, match="data_dir=None: image_csv needs"):
    open_split("image_csv", "train")


def test_a_file_that_goes_missing_is_skipped_and_counted(photos):
  (photos / "train.csv").write_text("image,label\na.png,cat\nb.png,cat\n")
  skipping = spec(photos, num_classes=1, on_error="skip")
  raising = dataclasses.replace(skipping, on_error="raise")
  data = [eval_input(s, batch_size=2) for s in (skipping, raising)]
  (photos / "b.png").unlink()
  assert [batch["mask"].tolist() for batch in data[0]] == [[1, 0]]
  assert data[0].skipped == 1
  with pytest.raises(RecordError, match=r"line 3\): cannot be read: No such"):
    list(data[1])


def test_urls_are_read_by_fsspec(photos, monkeypatch):
  monkeypatch.setattr(ranges, "FIRST_PAUSE", 0.0)
  store = fsspec.filesystem("memory")
  store.put(str(photos), "/image_csv", recursive=True)
  text = f"image,label\na.png,cat\n{photos}/b.png,dog\ndeep/no.png,dog\n"
  store.pipe("/image_csv/train.csv", text.encode())
  source = open_split("image_csv", "train", "memory://image_csv")
  assert source.is_remote
  expected = [(photos / name).read_bytes() for name in ("a.png", "b.png")]
  assert [source[i]["image"] for i in range(2)] == expected
  with pytest.raises(
    RecordError, match=r"image_csv/deep/no\.png .*, line 4\): ca"
  ):
    source[2]
  store.rm("/image_csv", recursive=True)


@pytest.mark.slow  # Starts a server.
def test_from_a_bucket_comes_the_same_as_from_a_folder(photos, tmp_path):
  (tmp_path / "bucket").mkdir()
  (photos / "train.csv").write_text("image,label\na.png,cat\nb.png,dog\n")
  shutil.copytree(photos, tmp_path / "bucket" / "photos")
  with fake_gcs(tmp_path):
    batches = [
      train_input(spec(folder), batch_size=4, seed=0, shuffle="full")[3]
      for folder in (photos, "gs://bucket/photos")
    ]
  np.testing.assert_array_equal(batches[0]["image"], batches[1]["image"])
