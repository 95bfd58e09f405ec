"""A folder of the user's own images becomes a run."""

import shutil

import cv2
import numpy as np
import pytest

from configs import image_folder
from vmoe_study.cli.main import main
from vmoe_study.config import parse
from vmoe_study.data.sources import open_source
from vmoe_study.run.checkpoint import open_checkpoint
from vmoe_study.run.evaluate import evaluate

TINY = "smoke=true,batch=8"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Six bright and six dark images to train on, two of each to test on."""
  root = tmp_path_factory.mktemp("photos")
  rng = np.random.default_rng(0)
  for split, count in (("train", 6), ("test", 2)):
    for name, low in (("bright", 156), ("dark", 0)):
      folder = root / split / name
      folder.mkdir(parents=True)
      for i in range(count):
        image = rng.integers(low, low + 100, size=(20, 24 + i, 3))
        cv2.imwrite(str(folder / f"{i}.png"), image.astype(np.uint8))
  return root


def test_classes_and_images_are_counted(photos):
  values = image_folder.get_config(f"folder={photos},epochs=4,{TINY}").to_dict()
  config = parse(values)
  assert config.model.fields["num_classes"] == 2
  assert config.train.num_steps == 6  # 4 epochs of 12 images, 8 at a time.
  assert config.initialize.kind == "random"
  tuned = image_folder.get_config(f"folder={photos},start=dir,{TINY}")
  assert tuned.initialize.path == "dir"
  assert tuned.train.optimizer.name == "sgd"


def test_a_folder_is_needed(tmp_path):
  with pytest.raises(ValueError, match="folder='': must be given"):
    image_folder.get_config("")
  with pytest.raises(ValueError, match="there is no such folder"):
    image_folder.get_config(f"folder={tmp_path}")


def test_folders_inside_folders(photos, tmp_path):
  shutil.copytree(photos / "train", tmp_path / "train" / "indoors")
  shutil.copytree(photos / "train", tmp_path / "train" / "outdoors")
  text = f"folder={tmp_path},nested=true,{TINY}"
  config = parse(image_folder.get_config(text).to_dict())
  assert config.model.fields["num_classes"] == 4
  assert open_source(config.data).class_names[1] == "indoors/dark"
  with pytest.raises(ValueError, match="has no class folders. Leave out one"):
    image_folder.get_config(f"{text},csv=true")


@pytest.mark.cli
def test_from_a_list_with_several_labels_to_predictions(photos, tmp_path):
  for split in ("train", "test"):
    lines = ["image,labels"]
    for path in sorted((photos / split).rglob("*.png")):
      label = path.parent.name
      lines.append(f"{path},{label}|photo")
    (tmp_path / f"{split}.csv").write_text("\n".join(lines))
  config = f"--config=configs/image_folder.py:folder={tmp_path},csv=true,{TINY}"
  workdir, more = tmp_path / "run", "router=dense,size=8,epochs=20,rate=0.01"
  assert main(["train", f"--workdir={workdir}", f"{config},{more}"]) == 0
  checkpoint = open_checkpoint(workdir)
  assert checkpoint.config.train.loss == "sigmoid_xent"
  assert checkpoint.class_names == ("bright", "dark", "photo")
  (found,) = checkpoint.predict([photos / "test" / "dark" / "0.png"])
  probabilities = dict(found.top(3))
  assert probabilities["dark"] > 0.5 > probabilities["bright"]
  assert probabilities["photo"] > 0.5  # Each class stands for itself.
  with pytest.raises(ValueError, match="--trust-data-dirs"):
    evaluate(workdir)


@pytest.mark.cli
def test_from_a_folder_to_a_table_row(photos, tmp_path, capsys):
  base = f"--config=configs/image_folder.py:folder={photos},{TINY}"
  first, second = tmp_path / "scratch", tmp_path / "tuned"
  runs = [
    (first, f"{base},size=8,epochs=3"),
    (second, f"{base},epochs=1,start={first},size=16"),
  ]
  for workdir, config in runs:
    arguments = [config, f"--workdir={workdir}", "--config.fewshot={}"]
    assert main(["train", *arguments]) == 0
  capsys.readouterr()
  assert main(["report", str(first), str(second)]) == 0
  table = capsys.readouterr().out
  assert "test/accuracy" in table and "tuned" in table
