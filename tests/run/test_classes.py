"""The classes of a run keep their numbers, whatever folders data sets have."""

import collections
import shutil

import cv2
import numpy as np
import pytest

from vmoe_study.checkpoint.load import load_params
from vmoe_study.checkpoint.store import CheckpointStore
from vmoe_study.doctor.examine import Examination
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.checkpoint import open_checkpoint
from vmoe_study.run.config_file import load_config, load_values
from vmoe_study.run.evaluate import evaluate
from vmoe_study.run.train import train

pytestmark = pytest.mark.slow
COLOURS = {"blue": (220, 30, 30), "green": (30, 220, 30), "red": (30, 30, 220)}
TINY = "smoke=true,router=dense,batch=24,size=8,epochs=20,rate=0.01"
THREE = [
  f"{field}.num_classes=3"
  for field in ("data", "evaluations.test.data", "model.fields")
]
STEPS = ["train.num_steps=4", "train.schedule.warmup_steps=0"]


def add(folder, colour):
  folder.mkdir(parents=True)
  rng = np.random.default_rng(0)
  for i in range(8):
    noise = rng.normal(0, 20, (10, 10, 3))
    image = np.clip(COLOURS[colour] + noise, 0, 255).astype(np.uint8)
    cv2.imwrite(str(folder / f"{i}.png"), image)


def split(folder, *names, **colours):
  """Adds classes that are called by their colours, or otherwise."""
  for name, colour in ({name: name for name in names} | colours).items():
    add(folder / name, colour)
  return folder.parent


def arguments(folder, *overrides, start=""):
  """Arguments of `load_config`."""
  start = f",start={start}" if start else ""
  text = f"configs/image_folder.py:folder={folder},{TINY}{start}"
  return text, ["fewshot={}", *overrides]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Three classes to train on; the test images lack green."""
  root = tmp_path_factory.mktemp("photos")
  split(root / "train", "blue", "green", "red")
  split(root / "test", "blue", "red")
  add(root / "test" / ".ipynb_checkpoints", "red")
  return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
  """The workdir of a run that tells the colours apart."""
  workdir = tmp_path_factory.mktemp("run")
  train(load_config(*arguments(photos)), workdir)
  return workdir


def accuracy(workdir, folder):
  where = f"evaluations.test.data.data_dir={folder}"
  return evaluate(workdir, overrides=[where])["test/accuracy"]


def test_a_split_without_a_class(run, photos, caplog):
  names = open_checkpoint(run).class_names
  assert names == ("blue", "green", "red")
  assert accuracy(run, photos) == 1
  assert "no images of class 'green'" in caplog.text


def test_folders_are_compared_by_name(run, tmp_path):
  folder = split(tmp_path / "test", "green", blue="red", red="blue")
  assert accuracy(run, folder) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
  "classes", [["blue", "crimson"], ["blue", "crimson", "green", "red"]]
)
def test_an_evaluation_of_other_classes(run, tmp_path, classes):
  for name in classes:
    add(tmp_path / "test" / name, name if name in COLOURS else "red")
  message = r"^evaluations\.test\.data: image_folder\[test\]: class 'crimson': "
  with pytest.raises(ValueError, match=message):
    accuracy(run, tmp_path)


def test_a_checkpoint_without_class_names(run, photos, tmp_path, caplog):
  """As earlier versions wrote it."""
  params, metadata, step = load_params(workdir_lib.checkpoints(run))
  del metadata["class_names"]
  store = CheckpointStore(workdir_lib.checkpoints(tmp_path / "old"))
  store.save(step, params, None, metadata, wait=True)
  store.close()
  assert open_checkpoint(tmp_path / "old").class_names is None
  folder = split(tmp_path / "test", "blue", "green", "red")
  assert accuracy(tmp_path / "old", folder) == 1
  assert "is not checked" in caplog.text


def test_a_resumed_run_keeps_the_numbers(photos, tmp_path, caplog):
  root, workdir = tmp_path / "photos", tmp_path / "run"
  shutil.copytree(photos, root)
  given = arguments(root, *STEPS, "train.save_every=2")
  config = load_config(*given)
  train(config, workdir)
  shutil.rmtree(workdir_lib.checkpoints(workdir) / "4")
  green = root / "train" / "green"
  green.rename(root / "train" / "verde")
  with pytest.raises(ValueError, match="class 'verde': not among the classes"):
    train(config, workdir)
  shutil.rmtree(root / "train" / "verde")
  assert train(config, workdir).is_finished
  assert open_checkpoint(workdir).class_names == ("blue", "green", "red")
  assert "training data: image_folder[train]: no images of class" in caplog.text


def test_damaged_images_are_left_out(photos, tmp_path):
  root = tmp_path / "photos"
  shutil.copytree(photos, root)
  config_file, _ = arguments(root)
  for file in ("train/green/0.png", "test/red/0.png"):
    (root / file).write_bytes((root / file).read_bytes()[:-20])
  with pytest.raises(ValueError, match=r"red/0\.png: .* `doctor` finds others"):
    train(load_config(config_file, STEPS), tmp_path / "refused")
  skipped = [
    f"{field}.on_error=skip"
    for field in ("data", "evaluations.test.data", "fewshot.own.train")
  ]
  skipped += ["fewshot.own.test.on_error=skip", "shots=(1,8)"]
  config = load_config(config_file, [*STEPS, *skipped])
  metrics = train(config, tmp_path / "run").metrics
  assert metrics["test/examples"] == 15
  # All training images but one, which tell the colours apart.
  assert metrics["fewshot/own/8shot"] == 1


def test_fine_tuning_takes_over_a_head_with_its_classes(run, photos, tmp_path):
  """The new images lack a class; the old head still knows it."""
  root = split(tmp_path / "photos" / "train", "green", "red")
  split(root / "test", "blue", "green")
  rate = "train.schedule.peak=1e-9"
  given = arguments(root, *THREE, *STEPS, rate, start=run)
  result = train(load_config(*given), tmp_path / "tuned")
  tuned = open_checkpoint(tmp_path / "tuned")
  assert tuned.class_names == ("blue", "green", "red")
  assert result.metrics["test/accuracy"] == 1
  head = open_checkpoint(run).params["head"]["kernel"]
  np.testing.assert_allclose(tuned.params["head"]["kernel"], head, atol=1e-6)


def test_fine_tuning_to_other_classes_starts_a_new_head(run, tmp_path, caplog):
  root = split(tmp_path / "photos" / "train", "green", "red", verde="green")
  split(root / "test", "red")
  rate = "train.schedule.peak=1e-9"
  given = arguments(root, *STEPS, rate, start=run)
  train(load_config(*given), tmp_path / "tuned")
  tuned = open_checkpoint(tmp_path / "tuned")
  assert tuned.class_names == ("green", "red", "verde")
  np.testing.assert_allclose(tuned.params["head"]["kernel"], 0, atol=1e-6)
  assert "a new head" in caplog.text


def test_a_single_class_is_no_task(tmp_path):
  root = split(tmp_path / "train", "red")
  split(tmp_path / "test", "red")
  with pytest.raises(ValueError, match="class 'red' is the only one"):
    train(load_config(*arguments(root)), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def examine(*given, workdir=None):
  """Subjects and texts of what the doctor finds, by status."""
  found = collections.defaultdict(list)
  for finding in Examination(load_values(*given), 8, workdir).run():
    found[finding.status].append((finding.subject, finding.text))
  return found


def test_the_doctor_compares_classes(run, photos, tmp_path):
  found = examine(*arguments(photos))
  assert found["PROBLEM"] == []
  text = "no images of class 'green'; the others keep their numbers"
  assert ("evaluations.test.data", text) in found["note"]
  assert ("classes", "3: 'blue', 'green', 'red'") in found["ok"]
  root = split(tmp_path / "train", "blue", "red")
  split(tmp_path / "test", "blue", rot="red")
  add(tmp_path / "train" / "red" / "old", "red")
  for name in ("rouge", "rot"):
    (tmp_path / "train" / name).mkdir()
  ((subject, text), *_) = examine(*arguments(root))["PROBLEM"]
  assert subject == "data" and "rot, " in text and "rouge: no .jpg" in text
  for name in ("rouge", "rot"):
    (tmp_path / "train" / name).rmdir()
  found = examine(*arguments(root))
  ((subject, text),) = found["PROBLEM"]
  assert subject == "evaluations.test.data" and "class 'rot'" in text
  assert "(red/old), with 8 files" in dict(found["note"])["data"]


def test_the_doctor_knows_the_classes_of_the_workdir(run, photos, tmp_path):
  root = split(tmp_path / "train", "blue", "green", "red")
  split(tmp_path / "test", "blue")
  (root / "train" / "green").rename(root / "train" / "verde")
  problems = examine(*arguments(root), workdir=str(run))["PROBLEM"]
  assert any(s == "data" and "class 'verde'" in text for s, text in problems)
