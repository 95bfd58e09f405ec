"""What two processes do about a step that is not finite: both the same."""

import os
import pathlib
import subprocess

from vmoe_study.checkpoint.load import load_metadata
from vmoe_study.cli.main import main

from ..programs import unchecking_python, xla_flags

ROOT = pathlib.Path(__file__).parents[2]
DIVERGING = [
  "--config=configs/digits.py",
  "--config.mesh.expert=2",
  "--config.model.fields.width=16",
  "--config.model.fields.depth=2",
  "--config.model.fields.mlp_dim=32",
  "--config.train.num_epochs=0",
  "--config.train.num_steps=14",
  "--config.train.schedule.name=constant",
  "--config.train.schedule.warmup_steps=0",
  "--config.train.schedule.peak=1e16",
  "--config.evaluations={}",
  "--config.fewshot={}",
]


def test_both_stop_at_the_step_and_keep_it(tmp_path, digits_folder):
  environment = {
    "PYTHON": unchecking_python(tmp_path),
    "TFDS_DATA_DIR": str(digits_folder),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": xla_flags(2),
  }
  workdir = tmp_path / "work"
  command = ["launch/local.sh", "--processes=2", "--devices=2", "--", "train"]
  run = subprocess.run(
    [*command, *DIVERGING, f"--workdir={workdir}"],
    cwd=ROOT,
    env=os.environ | environment,
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert run.returncode == 1, run.stderr[-4000:]
  assert "error: step 1: the loss is nan" in run.stderr
  record, step = load_metadata(workdir / "failures" / "step_1")
  assert step == 1 and record["config"]["mesh"]["expert"] == 2
  # One process, with as many devices, runs it again.
  assert main(["replay", f"--workdir={workdir}"]) == 0
