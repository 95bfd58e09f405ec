"""The best model is kept, and a run ends when it gets no better."""

import json
import shutil

import jax
import numpy as np
import pytest

import vmoe_study
from vmoe_study.checkpoint.load import absolute, complete_steps, load_params
from vmoe_study.cli.main import main
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.study import report, results
from vmoe_study.training.metrics_file import FILE_NAME, read_metrics

pytestmark = pytest.mark.cli

METRIC, PATIENCE, STEPS = "test/loss", 3, 40
OVERRIDES = (
  *("model.fields.width=16", "model.fields.depth=2", "model.fields.mlp_dim=32"),
  *("model.fields.num_heads=2", "model.moe.options.num_experts=4"),
  *("train.num_epochs=0.0", f"train.num_steps={STEPS}", "train.keep=50"),
  # With this rate the loss falls at first, and then rises.
  *("train.schedule.name=constant", "train.schedule.peak=0.1"),
  *("train.schedule.warmup_steps=0", "train.optimizer.clip_norm=0.0"),
  *("train.evaluate_every=2", f"train.best.metric={METRIC}", "fewshot={}"),
)


def _config(*overrides):
  return vmoe_study.load_config(
    "configs/digits.py:router=softmax_token_choice", [*OVERRIDES, *overrides]
  )


def _checkpoints(workdir):
  return absolute(workdir_lib.checkpoints(workdir))


def _evaluations(workdir):
  return {r["step"]: r for r in read_metrics(workdir) if METRIC in r}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
  """A run that ended early, and what `train` returned."""
  workdir = tmp_path_factory.mktemp("stopped")
  config = _config(f"train.best.patience={PATIENCE}")
  return workdir, vmoe_study.train(config, workdir)


def test_a_run_ends_after_the_evaluations_of_its_patience(stopped):
  workdir, result = stopped
  losses = {s: row[METRIC] for s, row in _evaluations(workdir).items()}
  best = min(losses, key=losses.get)
  assert result.is_finished and result.step == best + 2 * PATIENCE < STEPS
  assert max(losses) == result.step
  for earlier in losses:  # It has not been that patient before.
    if earlier < result.step:
      before = {s: v for s, v in losses.items() if s <= earlier}
      assert earlier - min(before, key=before.get) < 2 * PATIENCE
  assert result.metrics[f"best/{METRIC}"] == losses[best]
  assert _checkpoints(workdir / "best").joinpath(str(best)).exists()


def test_the_best_model_is_a_workdir(stopped, tmp_path):
  workdir, result = stopped
  losses = {s: row[METRIC] for s, row in _evaluations(workdir).items()}
  best = min(losses, key=losses.get)
  assert complete_steps(_checkpoints(workdir / "best")) == [best]
  kept, saved = (
    load_params(_checkpoints(folder), best)[0]
    for folder in (workdir / "best", workdir)
  )
  jax.tree.map(np.testing.assert_array_equal, kept, saved)
  out = tmp_path / "metrics.json"
  words = [f"--workdir={workdir}/best", f"--out={out}", "--trust-data-dirs"]
  assert main(["evaluate", *words]) == 0
  found = json.loads(out.read_text())
  assert found["step"] == best < result.step
  assert found[METRIC] == pytest.approx(losses[best])


def test_it_counts_as_finished_and_says_why(stopped, caplog):
  workdir, result = stopped
  before = (workdir / FILE_NAME).read_bytes()
  config = _config(f"train.best.patience={PATIENCE}")
  again = vmoe_study.train(config, workdir)
  assert again.is_finished and again.step == result.step
  assert (workdir / FILE_NAME).read_bytes() == before
  table = report.runs_table(results.load([workdir]))
  assert f"{result.step} of {STEPS} (stopped early)" in table


def _interrupted(workdir, copy, step, evaluated):
  """A copy of a run that was killed at the evaluation of a step."""
  copy = shutil.copytree(workdir, copy)
  for saved in complete_steps(_checkpoints(copy)):
    if saved > step:
      shutil.rmtree(_checkpoints(copy) / str(saved))
  rows = (copy / FILE_NAME).read_text().splitlines()
  kept = [
    row
    for row in rows
    if json.loads(row)["step"] <= step
    and (evaluated or METRIC not in row or json.loads(row)["step"] < step)
  ]
  (copy / FILE_NAME).write_text("\n".join(kept) + "\n")
  return copy


@pytest.mark.parametrize(
  ("at", "evaluated"), [("best", False), ("later", True)]
)
def test_a_killed_run_ends_like_one_that_was_not(
  stopped, tmp_path, at, evaluated
):
  """The best model may be one that the resumed run has not come to yet."""
  workdir, result = stopped
  best = result.step - 2 * PATIENCE
  step = best if at == "best" else best + 2
  run = _interrupted(workdir, tmp_path / "run", step, evaluated)
  again = vmoe_study.train(_config(f"train.best.patience={PATIENCE}"), run)
  assert again.step == result.step
  drop = ("train/", "step")
  for s, row in _evaluations(workdir).items():
    assert _evaluations(run)[s] == {
      k: v for k, v in row.items() if not k.startswith(drop) or k == "step"
    }
  assert complete_steps(_checkpoints(run / "best")) == [best]
  kept, expected = (
    load_params(_checkpoints(folder / "best"))[0] for folder in (run, workdir)
  )
  jax.tree.map(np.testing.assert_array_equal, kept, expected)


@pytest.mark.parametrize(
  ("overrides", "reason"),
  [
    (["train.best.metric=test/acuracy"], "Did you mean 'test/accuracy'?"),
    (["train.best.metric=val/loss"], "Valid metrics: test/accuracy, test/loss"),
    (["train.best.metric=", "train.best.patience=2"], "needs a metric"),
    (
      ["train.best.patience=2", "train.evaluate_every=0"],
      "Set evaluate_every to a number of steps",
    ),
  ],
)
def test_what_is_wrong_is_said_before_anything_runs(overrides, reason):
  with pytest.raises(ValueError, match="best") as error:
    _config(*overrides)
  assert reason in str(error.value)
