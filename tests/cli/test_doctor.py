"""The doctor on good and bad runs, through its command line."""

import copy
import dataclasses
import pathlib
import re

import cv2
import jax
import numpy as np
import pytest

from configs import digits
from vmoe_study.checkpoint.foreign.architecture import infer_model
from vmoe_study.checkpoint.foreign.npz import save_npz
from vmoe_study.checkpoint.foreign.vmoe import read_vmoe
from vmoe_study.checkpoint.store import CheckpointStore
from vmoe_study.cli.main import main
from vmoe_study.config import parse
from vmoe_study.data import probe as probe_lib
from vmoe_study.data.pipeline import train_input
from vmoe_study.doctor.examine import Examination
from vmoe_study.doctor.workdir import checkpoints_at_once
from vmoe_study.parallel.mesh import make_mesh
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.experiment import Model, Training
from vmoe_study.training.spec import TrainSpec

CONFIG = "--config=configs/digits.py:router=softmax_token_choice"
VALUES = digits.get_config("router=softmax_token_choice").to_dict()
VALUES["model"]["fields"]["depth"] = 2
REFERENCE = pathlib.Path(__file__).parents[1] / "data" / "reference"
PREFIX = str(REFERENCE / "vmoe_checkpoint" / "vmoe_v1")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
  """Caches are in a folder of the test, and few examples are read."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(probe_lib, "EXAMPLES", 100)
    yield


@pytest.fixture
def doctor(capsys):
  """Runs the command on VALUES; returns its exit code and what it prints."""

  def run(*words):
    code = main(["doctor", CONFIG, "--config.model.fields.depth=2", *words])
    return code, capsys.readouterr().out

  return run


def changed(**changes):
  """VALUES with fields changed by path, dots written as double underscores."""
  values = copy.deepcopy(VALUES)
  for path, value in changes.items():
    *parents, last = path.split("__")
    node = values
    for name in parents:
      node = node[name]
    node[last] = value
  return values


def problems(values, num_devices=1, workdir=None):
  """Subjects and texts of what would make a run fail."""
  found = Examination(values, num_devices, workdir).run()
  return [(f.subject, f.text) for f in found if f.status == "PROBLEM"]


def test_a_good_run(doctor, tmp_path):
  picture = tmp_path / "sheet.png"
  workdir = tmp_path / "new" / "run"
  code, out = doctor(f"--workdir={workdir}", f"--preview={picture}")
  assert code == 0, out
  assert "PROBLEM" not in out and "not checked" not in out
  assert "1,438 examples in digits train, of 10 classes" in out
  assert "image float32 (64, 8, 8, 1) from -1 to 1" in out
  assert "at least 139 images in each of 10 classes" in out
  assert "1,798 steps of 64 images = 80.02 epochs of 1,438 images" in out
  model = Model(parse(VALUES), (8, 8, 1))
  count = sum(leaf.size for leaf in jax.tree.leaves(model.params_shape))
  assert f"{count:,} parameters" in out
  assert cv2.imread(str(picture)).shape[1] > 1000
  assert not workdir.parent.exists()


def test_all_problems_at_once_each_with_its_remedy(doctor, tmp_path):
  (tmp_path / "file").write_text("in the way")
  code, out = doctor(
    f"--workdir={tmp_path}/file/run",
    "--devices=8",
    "--config.data.name=cifar10",
    "--config.mesh.expert=3",
    "--config.model.fields.num_classes=7",
    "--config.evaluations.test.batch_size=100",
    "--config.fewshot.digits.test.split=tset",
    "--config.initialize.kind=npz",
    f"--config.initialize.path={tmp_path}/nowhere.npz",
    "--config.train.num_epochs=0",
    "--config.train.num_steps=5",
  )
  assert code == 1
  for text in (
    "data.num_classes=10: must be model.fields.num_classes",
    "python -m vmoe_study prepare cifar10",
    "fewshot.digits.test: split='tset'",
    "make up the 8 devices. Set sizes",
    "evaluations.test.batch_size=100",
    "The next multiple is 104",
    "nowhere.npz",
    "file/run: cannot be written to",
    "5 steps. Shorten",
  ):
    assert text in out, text
  assert "not checked  training batch: because" in out
  # The model is checked with the shape of the evaluation's images.
  assert "ok           model" in out


def test_wrong_fields_hide_no_data(doctor):
  code, out = doctor(
    "--config.train.optimizer.name=adamx",
    "--config.model.backbone=B16",
    "--config.evaluations.test.data.split=tset",
    "--config.data.ops=blur(3)",
  )
  assert code == 1
  assert "unknown name 'adamx'" in out and "backbone='B16'" in out
  assert "unknown operation 'blur'" in out and "split='tset'" in out
  assert "not checked  devices and model: because the config is invalid" in out


def test_usage_errors_are_those_of_all_commands(capsys):
  assert main(["doctor", "--config=configs/nowhere.py"]) == 2
  assert main(["doctor", CONFIG, "--config.colour=1"]) == 2
  for option in ("--devices=0", "--num-examples=0"):
    assert main(["doctor", CONFIG, option]) == 2
    assert f"{option}: must be at least 1" in capsys.readouterr().err
  assert main(["doctor", CONFIG, "--image-shape=8x8x1"]) == 2
  assert "Give --num-examples=N too" in capsys.readouterr().err


def test_classes_of_data_and_head():
  found = problems(
    changed(
      model__fields__num_classes=5,
      data__num_classes=5,
      evaluations__test__data__num_classes=5,
    )
  )
  texts = [text for subject, text in found if subject == "data"]
  assert any("label" in t and "in [0, 5)" in t for t in texts)
  assert any("num_classes=5: must be at least 10" in t for t in texts)


def test_evaluations_of_other_sizes_or_random_operations():
  ((subject, text),) = problems(
    changed(evaluations__test__data__ops="resize(16)|value_range(-1, 1)")
  )
  assert subject == "evaluations.test.data" and "16 x 16" in text
  ((_, text),) = problems(changed(evaluations__test__data__ops="pad_crop(1)"))
  assert "draw random numbers" in text


@pytest.fixture
def folder(tmp_path):
  """A folder of images, and a config for it."""
  for split in ("train", "test"):
    for name in ("a", "b"):
      (tmp_path / split / name).mkdir(parents=True)
      for i in range(12):
        image = np.full((12, 12, 3), 20 * i, np.uint8)
        cv2.imwrite(str(tmp_path / split / name / f"{i:02}.jpg"), image)
  data = {
    "name": "image_folder",
    "data_dir": str(tmp_path),
    "num_classes": 2,
    "ops": "resize(8)|value_range(-1, 1)",
  }
  train, test = ({**data, "split": split} for split in ("train", "test"))
  values = changed(
    data=train,
    evaluations__test__data=test,
    model__fields__num_classes=2,
    train__num_epochs=0.0,
    train__num_steps=200,
  )
  return tmp_path, {**values, "fewshot": {}}


def test_damaged_images_are_named_or_counted(folder):
  path, values = folder
  assert problems(values) == []
  good = (path / "train" / "b" / "03.jpg").read_bytes()
  (path / "train" / "b" / "03.jpg").write_bytes(good[:-20])
  (path / "test" / "a" / "05.jpg").write_bytes(b"")
  found = dict(problems(values))
  assert set(found) == {"data", "evaluations.test.data"}  # Each once.
  assert "train/b/03.jpg: the JPEG file is truncated" in found["data"]
  assert "--config.data.on_error=skip" in found["data"]
  assert "a/05.jpg: 0 bytes" in found["evaluations.test.data"]
  values["data"]["on_error"] = "skip"
  values["evaluations"]["test"]["data"]["on_error"] = "skip"
  assert problems(values) == []
  notes = [f.text for f in Examination(values, 1).run() if f.status == "note"]
  assert any("1 of 24 examples" in text for text in notes)
  (path / "train" / "c").mkdir()
  (path / "train" / "d").mkdir()
  assert "train/c, " in dict(problems(values))["data"]
  assert "train/d: no .jpg" in dict(problems(values))["data"]


def test_a_class_that_only_an_evaluation_has_is_named_and_nothing_else(folder):
  path, values = folder
  (path / "test" / "aa").mkdir()  # Before "b", whose number it takes.
  image = np.zeros((12, 12, 3), np.uint8)
  cv2.imwrite(str(path / "test" / "aa" / "0.jpg"), image)
  ((subject, text),) = problems(values)
  assert subject == "evaluations.test.data" and "class 'aa': not among" in text


@pytest.fixture(scope="module")
def trained():
  """The state of a run of VALUES, before its first step."""
  config = parse(VALUES)
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  return Training(Model(config, (8, 8, 1), mesh), 1438).init()


def save(state, workdir, step, values):
  """A workdir as a run leaves it."""
  workdir_lib.write_config(workdir, values)
  store = CheckpointStore(workdir_lib.checkpoints(workdir))
  record = {"config": values, "image_shape": [8, 8, 1]}
  store.save(step, state.params, state.opt_state, record, wait=True)
  store.close()


def start(kind, path, **changes):
  return changed(initialize={"kind": kind, "path": str(path)}, **changes)


def test_starting_from_a_run(trained, tmp_path):
  save(trained, tmp_path, 3, VALUES)
  assert problems(start("checkpoint", tmp_path)) == []
  wider = start("checkpoint", tmp_path, model__fields__width=32)
  (problem,) = problems(wider)
  assert "does not fit the model" in problem[1]
  data = max(tmp_path.rglob("d/*"), key=lambda path: path.stat().st_size)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  (problem,) = problems(start("checkpoint", tmp_path))
  assert "no intact checkpoint" in problem[1]


def test_starting_from_an_npz(trained, tmp_path):
  path = tmp_path / "params.npz"
  save_npz(str(path), jax.tree.map(np.asarray, trained.params))
  assert problems(start("npz", path)) == []
  (problem,) = problems(start("npz", path, model__fields__depth=3))
  assert "does not fit" in problem[1] or "picks" in problem[1]
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  (problem,) = problems(start("npz", path))
  assert "Bad CRC-32" in problem[1]


def test_starting_from_a_public_checkpoint():
  ops = "resize(32)|rgb|value_range(-1, 1)"
  values = start("vmoe", PREFIX, data__ops=ops, evaluations={}, fewshot={})
  values["model"] = infer_model(read_vmoe(PREFIX))
  values["model"]["fields"]["num_classes"] = 10
  assert problems(values) == []
  values["model"]["fields"]["mlp_dim"] = 40
  (problem,) = problems(values)
  assert "of another shape" in problem[1]


def test_a_workdir_that_goes_on(trained, tmp_path, doctor):
  save(trained, tmp_path, 3, VALUES)
  found = list(Examination(VALUES, 1, str(tmp_path)).run())
  assert [f.subject for f in found if f.status == "PROBLEM"] == []
  assert "from step 3 of 1798" in {f.text for f in found}
  other = changed(model__fields__width=32)
  texts = [text for _, text in problems(other, workdir=str(tmp_path))]
  assert any("model.fields.width: 64 -> 32" in text for text in texts)
  assert any("opt_state of" in text and "differs" in text for text in texts)


def test_too_little_space(tmp_path):
  """A model as large as no disk; only its shapes are made."""
  values = changed(model__fields__mlp_dim=10**7, model__fields__width=10**6)
  ((subject, text),) = problems(values, workdir=str(tmp_path))
  assert subject == "disk" and "--config.train.keep" in text


@pytest.mark.parametrize(
  ("changes", "num_steps", "expected"),
  [
    ({}, 100, 1),
    ({"save_every": 10}, 100, 3),
    ({"save_every": 40}, 100, 3),
    ({"save_every": 60}, 100, 2),
    ({"save_every": 10, "keep_every": 20}, 100, 8),
    ({"save_every": 10, "keep_every": 25}, 100, 5),
  ],
)
def test_how_many_checkpoints_there_are_at_once(changes, num_steps, expected):
  train = TrainSpec(batch_size=4, num_steps=num_steps, **changes)
  assert checkpoints_at_once(train, num_steps) == expected


def test_devices_that_are_not_here(doctor):
  code, out = doctor(
    "--devices=256",
    "--config.train.batch_size=512",
    "--config.mesh.expert=8",
    "--config.evaluations.test.batch_size=256",
    "--config.fewshot.digits.batch_size=256",
  )
  assert code == 0, out
  assert "256, as mesh {'replica': 32, 'expert': 8}: 2 images" in out


def test_data_that_are_not_here(doctor, tmp_path):
  elsewhere = [
    f"--config.{where}.{field}"
    for where in ("data", "evaluations.test.data")
    for field in ("name=elsewhere", f"data_dir={tmp_path}")
  ]
  words = [*elsewhere, "--config.fewshot={}", f"--workdir={tmp_path / 'run'}"]
  assert doctor(*words)[0] == 1  # Without --num-examples.
  words += ["--num-examples=6400", "--devices=128"]
  code, out = doctor(*words)
  assert "not checked  data and classes: because --num-examples=6400" in out
  assert "not checked  model: because the size of the images is unk" in out
  code, out = doctor(*words, "--image-shape=8x8x1")
  assert code == 1 and "128 devices x" in out  # The evaluation's batch.
  batches = [
    f"--config.{s}.batch_size=512" for s in ("train", "evaluations.test")
  ]
  code, out = doctor(*words, *batches, "--image-shape=8x8x1")
  assert code == 0, out
  assert "512 images" in out and "epochs of 6,400 images" in out
  assert "128, as mesh {'replica': 128, 'expert': 1}: 4 images" in out
  (here,) = re.findall(r"model: ([\d,]+) parameters", doctor()[1])
  assert f"model: {here} parameters" in out
  random = "--config.evaluations.test.data.ops=pad_crop(1)"
  code, out = doctor(*words, *batches, "--image-shape=8x8x1", random)
  assert code == 1 and "draw random numbers" in out
  assert not list(tmp_path.iterdir())


def test_it_draws_what_the_run_will_see(doctor, tmp_path):
  """The sheet's first image is the first one of the run."""
  picture = tmp_path / "sheet.png"
  doctor(f"--preview={picture}")
  spec = dataclasses.replace(parse(VALUES).data)
  image = train_input(spec, batch_size=64, seed=0)[0]["image"][0, ..., 0]
  enlarged = np.kron(image, np.ones((20, 20), np.uint8))
  drawn = cv2.imread(str(picture))[4:164, 4:164]
  np.testing.assert_array_equal(drawn, np.stack([enlarged] * 3, -1))
