"""A disk that fills up during a run: said, nothing lost, stopped or not."""

import gc
import os
import pathlib
import subprocess
import sys

import pytest

from vmoe_study.checkpoint.load import load_params
from vmoe_study.checkpoint.store import CheckpointStore
from vmoe_study.cli.main import main
from vmoe_study.training.metrics import MetricsWriter
from vmoe_study.training.metrics_file import read_metrics

from ..programs import xla_flags

# Orbax leaves threads and coroutines behind when a write fails.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning",
  "ignore::pytest.PytestUnhandledThreadExceptionWarning",
  "ignore:coroutine:RuntimeWarning",
)
STEPS = 6
SMALL = [
  "--config=configs/digits.py:router=dense",
  "--config.model.fields.depth=1",
]
LARGE = ["--config=configs/digits.py", "--config.model.fields.depth=2"]
TINY = [
  "--config.model.fields.width=16",
  "--config.model.fields.mlp_dim=32",
  "--config.train.num_epochs=0",
  f"--config.train.num_steps={STEPS}",
  "--config.train.schedule.warmup_steps=0",
  "--config.train.save_every=2",
  "--config.train.report_every=1",
  "--config.evaluations={}",
  "--config.fewshot={}",
]


@pytest.fixture
def disk(tmp_path):
  """A file system of 4 MB."""
  folder = tmp_path / "disk"
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
  if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("only root can mount a file system")
  yield folder
  subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: pathlib.Path) -> pathlib.Path:
  """Takes all space that is left."""
  ballast = folder / "ballast"
  with open(ballast, "wb", buffering=0) as file:
    try:
      while True:
        file.write(bytes(4096))
    except OSError:
      return ballast


@pytest.fixture
def space(disk, monkeypatch):
  """How much there is when a step is saved: `space[step] = bool`."""
  save, changes = CheckpointStore.save, {}

  def save_with_space(store, step, *saved, **parts):
    if changes.get(step) is False:
      store.wait()  # The steps before are complete.
      fill(disk)
    if changes.get(step):
      (disk / "ballast").unlink()
    save(store, step, *saved, **parts)

  monkeypatch.setattr(CheckpointStore, "save", save_with_space)
  gc.freeze()
  yield changes
  gc.collect()  # Orbax leaves coroutines behind.
  gc.unfreeze()


def train(disk, *more):
  return main(["train", *SMALL, *TINY, f"--workdir={disk}/work", *more])


@pytest.mark.process
@pytest.mark.parametrize("fault", ["full disk", "truncated file"])
def test_one_sentence_and_no_traceback(disk, fault):
  """Although threads and coroutines of Orbax have raised many errors."""
  model = LARGE if fault == "full disk" else SMALL
  command = [sys.executable, "-m", "vmoe_study", "train", *model, *TINY]
  command.append(f"--workdir={disk}/work")
  if fault == "full disk":
    (disk / "other").write_bytes(bytes(7 * 2**19))
    command += ["--config.train.keep=6", "--config.train.save_every=1"]
    command += ["--config.train.report_every=6"]  # A save meets it first.
  else:
    assert train(disk) == 0
    folder = disk / "work" / "checkpoints" / str(STEPS) / "params"
    for path in folder.rglob("d/*"):
      os.truncate(path, path.stat().st_size // 2)
  environment = os.environ | {"XLA_FLAGS": xla_flags(1)}
  found = subprocess.run(
    command, capture_output=True, text=True, env=environment
  )
  said = found.stderr.splitlines()
  assert "Traceback" not in found.stderr and "Exception" not in found.stderr
  if fault == "full disk":
    assert found.returncode == 2
    assert said[-1].startswith("error: ") and "No space left" in said[-1]
    assert sum("No space left" in line for line in said) == 1
  else:
    assert found.returncode == 0
    assert sum("is damaged: it cannot be read" in line for line in said) == 1


def reported(disk):
  return [r["step"] for r in read_metrics(disk / "work") if "train/loss" in r]


def test_a_run_stops_and_resumes_when_there_is_space(disk, space, capsys):
  space[4] = False
  assert train(disk) == 2
  error = capsys.readouterr().err
  assert "error: " in error and "No space left" in error
  assert "Free space" in error
  checkpoints = disk / "work" / "checkpoints"
  assert load_params(checkpoints)[2] == 2

  (disk / "ballast").unlink()
  space.clear()
  assert train(disk) == 0
  assert load_params(checkpoints)[2] == STEPS
  assert reported(disk) == [1, 2, 3, 4, 5, 6]


def test_a_run_goes_on_as_configured(disk, space, caplog):
  space[4], space[6] = False, True
  assert train(disk, "--config.train.on_save_error=continue") == 0
  assert "No space left" in caplog.text and "continues without" in caplog.text
  assert load_params(disk / "work" / "checkpoints")[2] == STEPS
  assert reported(disk)[:4] == [1, 2, 3, 4]


def test_the_last_checkpoint_is_needed(disk, space, capsys):
  space[4] = False
  assert train(disk, "--config.train.on_save_error=continue") == 2
  error = capsys.readouterr().err
  assert "step 6, the last one, could not be saved" in error
  assert load_params(disk / "work" / "checkpoints")[2] == 2


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_a_line_of_metrics_that_was_torn(disk, on_error):
  writer = MetricsWriter(disk, on_error=on_error)
  writer.write_scalars(1, {"a": 1.0})
  ballast = fill(disk)
  long = {f"name_{number}": 0.5 for number in range(2000)}
  if on_error == "stop":
    with pytest.raises(OSError, match="metrics of step 2 cannot be written"):
      writer.write_scalars(2, long)
  else:
    writer.write_scalars(2, long)
  ballast.unlink()
  writer.write_scalars(3, {"a": 3.0})
  writer.close()
  assert [row["step"] for row in read_metrics(disk)] == [1, 3]
