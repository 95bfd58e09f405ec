"""A run whose numbers are not finite: stopped or not, kept, run again."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.load import load_params, read_manifest
from vmoe_study.cli.main import main
from vmoe_study.data import device_ops
from vmoe_study.data.pipeline import TrainInput
from vmoe_study.training.metrics_file import FILE_NAME, read_metrics

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
  "--config.evaluations={}",
  "--config.fewshot={}",
]
# The first update makes parameters so large that nothing is finite after it.
DIVERGING = [
  "--config.train.schedule.name=constant",
  "--config.train.schedule.peak=1e16",
]
SKIP = ["--config.train.health.on_nonfinite=skip", "--allow-change"]


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
  assert "holds no step 5; the steps there are [1]" in capsys.readouterr().err


def test_replay_finds_a_norm_that_overflows(tmp_path, capsys):
  """All entries of gradient and update are finite."""
  words = [*DIVERGING[:1], "--config.train.schedule.peak=1e25"]
  assert train(tmp_path, *words) == 1
  assert "the gradients of all tensors are finite" in capsys.readouterr().err
  assert main(["replay", f"--workdir={tmp_path}"]) == 0
  found = capsys.readouterr().out
  assert "finite." not in found
  lines = [line for line in found.splitlines() if line.startswith("| norms")]
  assert len(lines) == 1 and "update_norm" in lines[0]


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


def damage(checkpoints, step):
  """Flips one bit of the parameters that reading them depends on.

  Bytes of an index that was replaced are still in the file, but are not read.
  """
  folder = checkpoints / str(step) / "params"
  files = [path for path in folder.rglob("*") if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  intact = largest.read_bytes()
  for place in range(len(intact) // 2, len(intact), 97):
    content = bytearray(intact)
    content[place] ^= 1
    largest.write_bytes(bytes(content))
    try:
      load_params(checkpoints, step)
    except CheckpointError:
      return
  raise AssertionError("no flipped bit was noticed")


def test_a_bad_batch_is_told_and_left_out(tmp_path, monkeypatch, capsys):
  """One image of one batch is not finite, then a checkpoint is damaged."""
  iterate, value_range = TrainInput.iterate, device_ops.value_range

  def damaged(self, start_step=0):
    for step, batch in enumerate(iterate(self, start_step), start_step):
      if step == 5:
        batch["image"][3] = 255
      yield batch

  def infinite_if_white(images, low, high):
    white = (images == 255).all(axis=(1, 2, 3), keepdims=True)
    return jnp.where(white, jnp.inf, value_range(images, low, high))

  monkeypatch.setattr(TrainInput, "iterate", damaged)
  monkeypatch.setattr(device_ops, "value_range", infinite_if_white)
  words = (
    "--config.train.health.on_nonfinite=skip",
    "--config.train.save_every=8",
  )
  assert train(tmp_path, *words) == 0
  kept = [path.name for path in (tmp_path / "failures").iterdir()]
  assert kept == ["step_5"]
  rows = [row for row in read_metrics(tmp_path) if "train/loss" in row]
  assert [row["train/skipped_steps"] for row in rows] == [0, 1, 1, 1]
  assert all(np.isfinite(row["train/loss"]) for row in rows)

  assert main(["replay", f"--workdir={tmp_path}"]) == 0
  found = capsys.readouterr().out
  assert "The largest of batch: inf in image." in found
  assert "| batch " in found and " image " in found

  checkpoints = tmp_path / "checkpoints"
  saved = read_manifest(checkpoints / str(STEPS))["items"]
  damage(checkpoints, STEPS)
  assert train(tmp_path, *words) == 0  # From step 8, which is intact.
  assert read_manifest(checkpoints / str(STEPS))["items"] == saved
  assert (checkpoints / f"damaged-{STEPS}").exists()
  again = [row for row in read_metrics(tmp_path) if "train/loss" in row]
  counts = [(row["step"], row["train/skipped_steps"]) for row in again]
  assert counts == [(4, 0), (8, 1), (12, 1), (STEPS, 1)]


def test_a_collapse_is_measured_and_stops_the_run(tmp_path, capsys):
  words = [
    "--config=configs/digits.py:router=softmax_token_choice,capacity=0.5",
    *TINY[1:],
    "--config.train.health.max_unprocessed=0.01",
  ]
  folder = f"--workdir={tmp_path / 'stops'}"
  stop = ["--config.train.health.on_collapse=stop"]
  stop += ["--config.train.health.collapse_steps=6"]
  assert main(["train", *words, *stop, folder]) == 1
  said = capsys.readouterr().err
  assert "error: step 6: routers have collapsed, for 6 steps in a row" in said
  assert "of the tokens got no expert" in said
  rows = list(read_metrics(tmp_path / "stops"))
  assert rows[-1]["step"] == 4
  assert rows[-1]["train/routing/encoderblock_1/unused_experts"] == 0
  assert rows[-1]["train/routing/encoderblock_1/unprocessed"] > 0.01
