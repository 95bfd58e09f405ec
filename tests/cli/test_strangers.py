"""Checkpoints and data sets of strangers: nothing runs, nothing is reached."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.read_only_builder import builder_from_files

from vmoe_study.checkpoint.load import load_params
from vmoe_study.checkpoint.store import CheckpointStore
from vmoe_study.cli.main import main
from vmoe_study.data.sources import open_split
from vmoe_study.data.spec import DataSpec
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.checkpoint import open_checkpoint

from ..data.tfds_writer import write
from ..run.gcs_server import serve

ROOT = pathlib.Path(__file__).parents[2]
IMAGE = tfds.features.Image(shape=(8, 8, 1))
LABEL = tfds.features.ClassLabel(num_classes=10)
TEST = "evaluations.test.data"
COMMANDS = {
  "evaluate": [],
  "inspect": ["--num-images=8", "--num-shown=1", "--capacities=0.5"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A stranger's data set, and code beside it that writes `ran`."""
  examples = [{"image": np.zeros((8, 8, 1), np.uint8), "label": 1}] * 8
  features = {"image": IMAGE, "label": LABEL}
  written = write("digits", features, examples, tmp_path, split="test")
  (tmp_path / "stranger.py").write_text(
    f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
  )
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  yield written
  sys.modules.pop("stranger", None)


def edit(file, old, new):
  text = pathlib.Path(file).read_text()
  assert old in text
  pathlib.Path(file).write_text(text.replace(old, new))


def checkpoint_of(trained, workdir, data_dir):
  """A checkpoint as a stranger makes it: whole, with such a config."""
  params, metadata, step = load_params(workdir_lib.checkpoints(trained))
  config = metadata["config"]
  config["fewshot"] = {}
  for data in (config["data"], config["evaluations"]["test"]["data"]):
    data["data_dir"] = str(data_dir)
  store = CheckpointStore(workdir_lib.checkpoints(workdir))
  store.save(step, params, None, metadata, wait=True)
  store.close()
  return workdir


def run(command, workdir, *words):
  out = workdir.with_name("out")
  more = [*COMMANDS[command], f"--out={out}", *words]
  return main([command, f"--workdir={workdir}", *more])


def test_a_class_that_metadata_name_is_not_imported(folder, tmp_path):
  name = "tensorflow_datasets.core.features.image_feature.Image"
  edit(folder / "features.json", name, "stranger.Image")
  with pytest.raises(ValueError, match="digits': a feature has the class 'str"):
    open_split("digits", "test", str(tmp_path))
  assert not (tmp_path / "ran").exists()
  with pytest.raises(ValueError, match="Unrecognized"):
    builder_from_files("digits", data_dir=str(tmp_path))
  assert (tmp_path / "ran").exists()  # The attack works without us.
  # The user's own import is consent.
  with pytest.raises(ValueError, match="Unrecognized"):
    open_split("digits", "test", str(tmp_path))


def test_the_module_of_a_builder_is_not_imported(folder, tmp_path):
  edit(folder / "dataset_info.json", "tests.data.tfds_writer", "stranger")
  assert len(open_split("digits", "test", str(tmp_path))) == 8
  assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
  "path", ["/etc/{SPLIT}-{SHARD_X_OF_Y}", "../{SPLIT}-{SHARD_X_OF_Y}"]
)
def test_record_files_are_in_the_folder_of_the_data_set(folder, tmp_path, path):
  template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
  edit(folder / "dataset_info.json", template, path)
  with pytest.raises(ValueError, match=r"names the file .*, which is not in"):
    open_split("digits", "test", str(tmp_path))


@pytest.mark.parametrize("split", ["../..", "/etc", "a/../../b"])
def test_a_split_is_within_the_folder(split, tmp_path):
  with pytest.raises(ValueError, match="must stay within data_dir"):
    DataSpec("image_folder", split, "resize(8)", 2, str(tmp_path))


@pytest.mark.parametrize("broken", ["", "[]", '{"name": 3}', '{"version": ""}'])
@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_metadata_that_are_none(folder, tmp_path, file, broken):
  (folder / file).write_text(broken)
  with pytest.raises((ValueError, OSError), match="digits"):
    open_split("digits", "test", str(tmp_path))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_is_read_when_it_is_confirmed(
  trained, folder, tmp_path, command, capsys
):
  workdir = checkpoint_of(trained, tmp_path / "workdir", tmp_path)
  name = "tensorflow_datasets.core.features.image_feature.Image"
  edit(folder / "features.json", name, "stranger.Image")
  assert run(command, workdir) == 2
  error = capsys.readouterr().err
  assert f"config.{TEST}.data_dir='{tmp_path}': the checkpoint's own" in error
  assert "--trust-data-dirs (trust_data_dirs=True in Python)" in error
  assert f"or name it: --config.{TEST}.data_dir=DIR." in error
  assert "config.data.data_dir" not in error  # Training data are not needed.
  fields = (f"{TEST}.data_dir", "data.data_dir")
  named = [f"--config.{field}={tmp_path}" for field in fields]
  for confirmed in ("--trust-data-dirs", *named):
    assert run(command, workdir, confirmed) == 2
    assert "the class 'stranger.Image'" in capsys.readouterr().err, confirmed
  assert run(command, workdir, "--config.evaluations.test.batch_size=64") == 2
  assert "the checkpoint's own" in capsys.readouterr().err
  assert not (tmp_path / "ran").exists()

  edit(folder / "features.json", "stranger.Image", name)
  assert run(command, workdir, "--trust-data-dirs") == 0


def test_the_users_own_tfds_folder_needs_no_word(
  trained, digits_folder, tmp_path
):
  workdir = checkpoint_of(trained, tmp_path / "workdir", digits_folder)
  assert run("evaluate", workdir) == 0


def test_a_checkpoint_opens_in_python_without_its_data(
  trained, folder, tmp_path
):
  workdir = checkpoint_of(trained, tmp_path / "workdir", tmp_path)
  checkpoint = open_checkpoint(workdir)
  assert checkpoint.apply(np.zeros((1, 8, 8, 1), np.float32)).shape == (1, 10)
  assert sorted(checkpoint.unconfirmed) == ["data.data_dir", f"{TEST}.data_dir"]
  assert not open_checkpoint(workdir, trust_data_dirs=True).unconfirmed
  config = open_checkpoint(trained).config
  assert not open_checkpoint(workdir, config=config).unconfirmed


def in_a_process(*words, cwd, **environment):
  return subprocess.run(
    [sys.executable, "-m", "vmoe_study", *words],
    cwd=cwd,
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )


def test_no_connection_is_made(trained, tmp_path, capsys):
  with serve() as server:
    url = f"{server.url}/tfds"
    workdir = checkpoint_of(trained, tmp_path / "workdir", url)
    assert run("evaluate", workdir) == 2
    error = capsys.readouterr().err
    assert f"data_dir='{url}'" in error and "Traceback" not in error
    assert server.connections == 0


# Evaluates a checkpoint, and on a line of input again, trusting its folders.
TWICE = """
import sys
from vmoe_study.cli.main import main
print(main(sys.argv[1:]), flush=True)
input()
print(main([*sys.argv[1:], "--trust-data-dirs"]))
"""


@pytest.mark.process
def test_no_connection_is_made_to_a_store(trained, tmp_path):
  url, log = "gs://bucket/tfds", tmp_path / "stderr"
  workdir = checkpoint_of(trained, tmp_path / "workdir", url)
  words = [sys.executable, "-c", TWICE, "evaluate", f"--workdir={workdir}"]
  with (
    serve() as server,
    log.open("w") as stderr,
    subprocess.Popen(
      words,
      cwd=ROOT,
      env=os.environ | {"STORAGE_EMULATOR_HOST": server.url},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=stderr,
      text=True,
    ) as process,
  ):
    assert process.stdout.readline() == "2\n", log.read_text()
    said = log.read_text()
    assert f"data_dir='{url}'" in said and "Traceback" not in said
    assert server.connections == 0
    # The server is the one that is asked then.
    assert process.communicate("\n")[0] == "2\n", log.read_text()
    assert server.connections > 0


@pytest.mark.process
def test_the_working_directory_is_not_on_the_module_path(trained, tmp_path):
  for name in ("jax", "etils", "absl", "ml_collections"):
    (tmp_path / f"{name}.py").write_text("open('ran', 'w').close()\n")
  (tmp_path / "installed").mkdir()
  (tmp_path / "installed" / "vmoe_study").symlink_to(ROOT / "vmoe_study")
  path = str(tmp_path / "installed")
  found = in_a_process("report", str(trained), cwd=tmp_path, PYTHONPATH=path)
  assert found.returncode == 0, found.stderr
  assert not (tmp_path / "ran").exists()
