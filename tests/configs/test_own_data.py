"""What configs/pretrain.py says about data that users supply."""

import re
import shlex

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import pretrain
from vmoe_study.cli.main import main
from vmoe_study.data.sources import open_split

from ..data.tfds_writer import write

pytestmark = pytest.mark.cli


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """Paths of a dozen JPEGs, and class numbers up to the last."""
  folder = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  listed = []
  for i in range(12):
    path = str(folder / f"{i}.jpg")
    cv2.imwrite(path, rng.integers(0, 256, (230 + i, 240, 3)).astype(np.uint8))
    listed.append((path, 21_842 - i))
  return listed


def example():
  """The code and the command of the docstring, with DIR as a name."""
  text = pretrain.__doc__
  (code,) = re.findall(r"^  import tensorflow.*?^  \)$", text, re.M | re.S)
  (command,) = re.findall(r"vmoe_study (doctor .*?)\n\n", text, re.S)
  code = "\n".join(line[2:] for line in code.splitlines())
  return code, shlex.split(command.replace("\\\n", " "))


def test_the_example_is_what_doctor_accepts(images, tmp_path, capsys):
  code, words = example()
  folder = str(tmp_path / "tfds")
  exec(code, {"images": images, "DIR": folder})
  source = open_split("imagenet21k", "full", folder)
  assert sorted(source.labels()) == sorted(label for _, label in images)
  words = [word.replace("=DIR", f"={folder}") for word in words]
  assert main([*words, "--devices=1"]) == 0, capsys.readouterr().out
  out = capsys.readouterr().out
  assert "data: 8 examples in imagenet21k full[4:], of 21,843 classes" in out
  assert "test.data: 4 examples in imagenet21k full[:4]" in out


def test_several_labels_or_none_are_what_doctor_accepts(
  images, tmp_path, capsys
):
  label = tfds.features.ClassLabel(num_classes=18_291)
  features = {
    "image": tfds.features.Image(shape=(None, None, 3)),
    "label": tfds.features.Sequence(label),
  }
  found = [
    {"image": path, "label": [0, 18_290][: i % 3]}
    for i, (path, _) in enumerate(images)
  ]
  write("mine", features, found, tmp_path)
  words = ["--config=configs/pretrain.py:data=jft,fewshot=none", "--devices=1"]
  for where in ("data", "evaluations.test.data"):
    words += [f"--config.{where}.name=mine", f"--config.{where}.split=train"]
    words.append(f"--config.{where}.data_dir={tmp_path}")
  assert main(["doctor", *words]) == 0, capsys.readouterr().out
  out = capsys.readouterr().out
  assert "12 examples in mine train, of 18,291 classes" in out
  assert "2 different labels from 0 to 18290" in out
