"""A run whose numbers are not finite: stopped or not, kept, run again."""

import json

import numpy as np
import pytest

from vmoe_study.cli.main import main
from vmoe_study.data.pipeline import TrainInput
from vmoe_study.train.metrics import FILE_NAME, read_metrics

STEPS = 14
TINY = [
  "--config=configs/digits.py",
  "--config.model.fields.width=16",
  "--config.model.fields.depth=2",
  "--config.model.fields.mlp_dim=32",
  "--config.train.num_epochs=0",
  f"--config.train.num_steps={STEPS}",
  "--config.train.schedule.warmup_steps=0",
  "--config.train.report_every=4",
  "--config.shots=(1,)",
]
# The first update makes parameters so large that nothing is finite after it.
DIVERGING = [
  "--config.train.schedule.name=constant",
  "--config.train.schedule.peak=1e16",
]
SKIP = ["--config.train.health.on_nonfinite=skip", "--allow-change"]


@pytest.fixture(scope="module", autouse=True)
def _data(tmp_path_factory):
  """Data sets are built in a folder of the test."""
  folder = str(tmp_path_factory.mktemp("data"))
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TFDS_DATA_DIR", folder)
    yield


def train(workdir, *more):
  return main(["train", *TINY, f"--workdir={workdir}", *more])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
  """The workdir of a run that diverged."""
  workdir = tmp_path_factory.mktemp("run") / "work"
  assert train(workdir, *DIVERGING) == 1
  return workdir


def test_the_failure_is_kept(stopped, capsys):
  folder = stopped / "failures" / "step_1"
  report = json.loads((folder / "report.json").read_text())
  assert report["step"] == 1 and report["loss"] == "nan"
  assert report["bad_gradients"] == sorted(report["bad_gradients"])
  assert "head/kernel" in report["bad_gradients"]
  assert len(report["examples"]) == 64
  assert not list((stopped / "checkpoints").iterdir())


def test_replay_finds_what_is_not_finite(stopped, capsys):
  assert main(["replay", f"--workdir={stopped}"]) == 0
  found = capsys.readouterr().out
  assert "Step 1: the loss is nan." in found
  assert "params: 1e+16 in" in found
  lines = [line for line in found.splitlines() if line.startswith("|")]
  first, last = lines[2], lines[-1]
  assert first.startswith("| metrics ") and last.startswith("| gradient")
  assert any("head/kernel" in line for line in lines)

  assert main(["replay", f"--workdir={stopped}", "--step=5"]) == 2
  assert "no step 5; there are [1]" in capsys.readouterr().err


def test_a_run_that_skips_in_vain_stops(stopped, capsys):
  assert train(stopped, *DIVERGING) == 1  # As before: nothing has changed.
  capsys.readouterr()
  assert train(stopped, *DIVERGING, *SKIP) == 1
  error = capsys.readouterr().err
  assert "step 10: the loss is nan" in error and "10 steps in a row" in error
  kept = {path.name for path in (stopped / "failures").iterdir()}
  assert kept == {"step_1", "step_2", "step_3"}

  rows = list(read_metrics(stopped))
  assert [row["step"] for row in rows] == [0, 4, 8]
  assert np.isnan(rows[-1]["train/loss"])
  assert rows[-1]["train/skipped_steps"] == 7
  lines = (stopped / FILE_NAME).read_text().splitlines()

  def refuse(token):
    raise AssertionError(f"{token} is not JSON")

  for line in lines:
    json.loads(line, parse_constant=refuse)


def test_a_bad_batch_is_told_and_left_out(tmp_path, monkeypatch, capsys):
  """One image of one batch is damaged on its way."""
  iterate = TrainInput.iterate

  def damaged(self, start_step=0):
    for step, batch in enumerate(iterate(self, start_step), start_step):
      if step == 5:
        batch["image"][3, 0, 0] = np.inf
      yield batch

  monkeypatch.setattr(TrainInput, "iterate", damaged)
  assert train(tmp_path, "--config.train.health.on_nonfinite=skip") == 0
  kept = [path.name for path in (tmp_path / "failures").iterdir()]
  assert kept == ["step_5"]
  rows = [row for row in read_metrics(tmp_path) if "train/loss" in row]
  assert [row["train/skipped_steps"] for row in rows] == [0, 1, 1, 1]
  assert all(np.isfinite(row["train/loss"]) for row in rows)

  assert main(["replay", f"--workdir={tmp_path}"]) == 0
  found = capsys.readouterr().out
  assert "The largest of batch: inf in image." in found
  assert "| batch " in found and " image " in found
