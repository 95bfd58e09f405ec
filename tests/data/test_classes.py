"""Classes are numbered by name, whichever folders a split happens to have."""

import dataclasses
import os
import pathlib

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from vmoe_study.data.classes import number_classes
from vmoe_study.data.examples import ExampleReader
from vmoe_study.data.image_folder import SUFFIXES
from vmoe_study.data.pipeline import eval_input, train_input
from vmoe_study.data.records import RecordError
from vmoe_study.data.sources import open_split
from vmoe_study.data.spec import DataSpec

from .tfds_writer import write

LEVELS = {"ant": 20, "bee": 90, "cat": 160, "dog": 230}


def add(folder: pathlib.Path, name: str, level: int, count: int = 3) -> None:
  """Writes grey images, whose level tells their class."""
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(count):
    cv2.imwrite(str(folder / f"{name}{i}.png"), np.full((4, 4, 3), level + i))


@pytest.fixture
def make(tmp_path):
  """Writes a split of an image folder; returns its spec."""

  def write_split(split: str, *classes: str, **fields) -> DataSpec:
    for name in classes:
      add(tmp_path / split / name, "", LEVELS[name])
    fields = {"num_classes": 3, "data_dir": str(tmp_path)} | fields
    return DataSpec("image_folder", split, "value_range(0, 255)", **fields)

  return write_split


def truth(batch, class_names) -> list[int]:
  """The classes of a batch by the levels of its images."""
  levels = batch["image"][:, 0, 0, 0] // 10 * 10
  names = {level: name for name, level in LEVELS.items()}
  return [class_names.index(names[level]) for level in levels]


@pytest.mark.parametrize(
  ("own", "run", "numbers", "missing"),
  [
    ("abc", "abc", None, None),
    ("ac", "abc", [0, 2], "class 'b'"),
    ("c", "abc", [2], "classes 'a', 'b'"),
    ("cba", "abc", [2, 1, 0], None),
    ("", "", None, None),
    ("02", "", [0, 2], "class '1'"),
    ("", "201", [1, 2, 0], None),
  ],
)
def test_numbers_by_name(own, run, numbers, missing):
  found, notes = number_classes(tuple(own), tuple(run), 3)
  assert (None if found is None else found.tolist()) == numbers
  expected = [f"no images of {missing}; the others keep their numbers"]
  assert notes == (expected if missing else [])


def test_names_that_the_run_does_not_have():
  with pytest.raises(ValueError) as error:
    number_classes(("cat", "dogs"), ("cat", "dog"), 2)
  text = "class 'dogs': not among the classes of the run, 'cat', 'dog'. Did you"
  assert str(error.value).startswith(text)
  with pytest.raises(ValueError, match=r"'0', '1', '2'"):
    number_classes(("a", "b"), (), 3)


def test_numbers_cannot_be_compared_with_names():
  found, (note,) = number_classes((), ("cat", "dog"), 2)
  assert found is None and "used unchecked" in note


def test_a_split_that_lacks_a_class_keeps_the_numbers(make):
  train = train_input(make("train", "ant", "bee", "cat"), batch_size=9, seed=0)
  assert train.class_names == ("ant", "bee", "cat") and not train.notes
  spec = make("test", "ant", "cat")
  folder = pathlib.Path(spec.data_dir) / "test"
  add(folder / ".ipynb_checkpoints", "", 0)
  add(folder / "ant", ".hidden", 0)
  (folder / "ant" / ".DS_Store").write_text("")
  data = eval_input(spec, batch_size=6, class_names=train.class_names)
  (batch,) = data
  assert batch["label"].tolist() == truth(batch, data.class_names)
  assert set(batch["label"].tolist()) == {0, 2}
  (note,) = data.notes
  assert note.startswith("image_folder[test]: no images of class 'bee'")


def test_a_class_that_the_run_does_not_have_is_named(make):
  names = "ant", "bee", "cat"
  spec = make("test", "ant", "dog")
  with pytest.raises(ValueError, match=r"^image_folder\[test\]: class 'dog': "):
    eval_input(spec, batch_size=6, class_names=names)
  with pytest.raises(ValueError, match=r"^image_folder\[test\]: class 'dog': "):
    train_input(spec, batch_size=6, seed=0, class_names=names)


def test_mixed_folders_share_their_classes(make):
  """Those of the main data set come first, whatever the others have."""
  mixture = [(make("a", "bee", "cat"), 1.0), (make("b", "ant", "cat"), 1.0)]
  data = train_input(mixture, batch_size=12, seed=0)
  assert data.class_names == ("bee", "cat", "ant")
  for step in range(3):
    batch = data[step]
    assert batch["label"].tolist() == truth(batch, data.class_names)
  narrow = [(make("a", num_classes=2), 1.0), (make("b", num_classes=2), 1.0)]
  with pytest.raises(ValueError, match="num_classes=2: must be at least 3"):
    train_input(narrow, batch_size=12, seed=0)


@pytest.mark.process
def test_worker_processes_number_classes_the_same(make):
  spec, names = make("train", "ant", "cat"), ("cat", "bee", "ant")
  arguments = {"batch_size": 6, "seed": 3, "class_names": names}
  alone = train_input(spec, **arguments)
  batches = train_input(spec, **arguments, num_workers=1).iterate(4)
  for step in (4, 5):
    batch = next(batches)
    assert batch["label"].tolist() == truth(batch, names)
    for key, expected in alone[step].items():
      np.testing.assert_array_equal(batch[key], expected)
  batches.close()


def test_names_of_tfds(tmp_path):
  def build(name, label, count):
    features = {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "label": label,
    }
    images = [
      {"image": np.full((4, 4, 3), 70 * i, np.uint8), "label": i}
      for i in range(count)
    ]
    write(name, features, images, tmp_path)
    return DataSpec(name, "train", "value_range(0, 255)", 3, str(tmp_path))

  labels = tfds.features.ClassLabel
  swapped = build("swapped", labels(names=["c", "a"]), 2)
  data = eval_input(swapped, batch_size=2, class_names=("a", "b", "c"))
  assert next(iter(data))["label"].tolist() == [2, 0]
  assert "class 'b'" in data.notes[0]
  numbered = build("numbered", labels(num_classes=3), 3)
  assert open_split("numbered", "train", str(tmp_path)).class_names == ()
  data = eval_input(numbered, batch_size=3, class_names=("a", "b", "c"))
  assert next(iter(data))["label"].tolist() == [0, 1, 2]
  assert "unchecked" in data.notes[0]


def test_what_is_passed_over_is_counted_and_named(make):
  spec = make("train", "ant", "bee")
  root = pathlib.Path(spec.data_dir) / "train"
  add(root / "ant" / "old", "", 0, 2)
  add(root / "ant" / "old" / "older", "", 0, 1)
  (root / "bee" / "notes.txt").write_text("no image")
  (root / "readme.md").write_text("no class")
  add(root, "beside", 0, 1)
  (root / "empty").mkdir()
  source = open_split("image_folder", "train", spec.data_dir)
  assert len(source) == 6 and source.class_names == ("ant", "bee")
  files, empty, nested = source.notes
  assert files.endswith(": 3 (beside0.png, readme.md, bee/notes.txt)")
  assert empty == "folders skipped, without images: 1 (empty)"
  assert ": 1 (ant/old), with 3 files. " in nested and "move" in nested


def test_folders_inside_folders_are_classes_if_asked_for(make):
  spec = make("train", "ant", label_key="path")
  root = pathlib.Path(spec.data_dir) / "train"
  add(root / "pets" / "cat", "", LEVELS["cat"])
  add(root / "pets" / "cat" / "big", "", LEVELS["dog"])
  (root / "pets" / "loop").symlink_to("..")
  (root / "pets" / "cat" / ".hidden").mkdir()
  source = open_split("image_folder", "train", spec.data_dir, "path")
  assert source.class_names == ("ant", "pets/cat", "pets/cat/big")
  assert source.labels().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
  assert source.where(8) == str(root / "pets/cat/big/2.png")
  assert [n[:41] for n in source.notes] == [
    "folders skipped, without images: 1 (pets/",
    "folders skipped, inside class folders: 2 ",
  ]
  assert source.empty_folders == [str(root / "pets" / "loop")]
  (root / "pets" / "loop").unlink()
  data = train_input(spec, batch_size=9, seed=0)
  batch = data.device_ops(data[0])
  numbers = truth(batch, ("ant", "cat", "dog"))
  np.testing.assert_array_equal(batch["label"].argmax(1), numbers)
  with pytest.raises(ValueError, match="label_key='top': must be 'path'"):
    open_split("image_folder", "train", spec.data_dir, "top")


def test_training_needs_images_of_every_class(make):
  spec = make("train", "ant", "bee")
  group = pathlib.Path(spec.data_dir) / "train" / "group"
  add(group / "cat", "", 160)
  with pytest.raises(ValueError) as error:
    train_input(spec, batch_size=6, seed=0)
  assert str(error.value).startswith(f"{group}: no .jpg or other")
  assert "Folders inside it are not read" in str(error.value)
  eval_input(spec, batch_size=6)  # What an evaluation lacks is only noted.


def test_no_class_folder_at_all(make, tmp_path):
  add(tmp_path / "train", "", 0)
  with pytest.raises(ValueError, match=r"has no class folder .* 3 \(0\.png, "):
    open_split("image_folder", "train", str(tmp_path))
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="cannot be listed: Not a directory"):
    open_split("image_folder", "file", str(tmp_path))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_suffixes(make, suffix):
  spec = make("train", "ant", num_classes=2)
  path = pathlib.Path(spec.data_dir) / "train" / "bee" / f"0{suffix.upper()}"
  path.parent.mkdir()
  image = np.full((4, 4, 3), LEVELS["bee"], np.uint8)
  Image.fromarray(image).save(path)
  example = ExampleReader(spec).read(3)
  assert example["labels"].tolist() == [1]
  assert abs(int(example["image"][0, 0, 0]) - LEVELS["bee"]) <= 2


def test_files_that_cannot_be_read_are_skipped_and_counted(make):
  spec = make("train", "ant", num_classes=1)
  path = pathlib.Path(spec.data_dir) / "train" / "ant" / "1.png"
  path.unlink()
  os.symlink("nowhere.png", path)
  with pytest.raises(RecordError, match=r"ant/1\.png: cannot be read: No such"):
    list(eval_input(spec, batch_size=1))
  skipping = dataclasses.replace(spec, on_error="skip")
  data = eval_input(skipping, batch_size=3)
  assert [batch["mask"].tolist() for batch in data] == [[1, 0, 1]]
  assert data.skipped == 1
