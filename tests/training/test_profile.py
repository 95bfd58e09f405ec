"""A trace of some steps of a run, and the memory that they leave."""

import gzip
import json
import os
import subprocess
import sys

import jax
import pytest

from vmoe_study.training.profile import StepProfile

pytestmark = pytest.mark.process

TINY = (
  *("model.fields.width=16", "model.fields.depth=2", "model.fields.mlp_dim=32"),
  *("model.fields.num_heads=2", "train.num_epochs=0.0", "train.num_steps=15"),
  *("train.schedule.warmup_steps=0", "train.evaluate_every=0", "fewshot={}"),
  *("train.save_every=13", "evaluations={}"),
)


def events(path):
  planes = jax.profiler.ProfileData.from_file(str(path)).planes
  return [e for plane in planes for line in plane.lines for e in line.events]


# Of the classes in which JAX 0.12 reads a profile, with Python 3.13.
@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")
def test_a_trace_has_the_steps_up_to_a_checkpoint(tmp_path):
  # In a process of its own, as users have it: where much else is loaded, as in
  # that of the tests, JAX's profiler may end it when it starts.
  command = [sys.executable, "-m", "vmoe_study", "train", "--profile=5"]
  command += ["--config=configs/digits.py:router=dense"]
  command += [f"--config.{override}" for override in TINY]
  command += [f"--workdir={tmp_path}"]
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  subprocess.run(command, check=True, env=environment)
  # Ten steps before it; the checkpoint of step 13 ends it.
  folder = tmp_path / "plugins" / "profile" / "steps_11-13"
  steps = [
    dict(event.stats)["step_num"]
    for event in events(folder / "process_0.xplane.pb")
    if event.name == "train"
  ]
  assert steps == [11, 12, 13]
  with gzip.open(folder / "process_0.trace.json.gz") as file:
    names = [event.get("name", "") for event in json.load(file)["traceEvents"]]
  assert names.count("train") == 3
  assert any("PjitFunction(train_step)" in name for name in names)
  memory = gzip.decompress((folder / "process_0.memory.prof").read_bytes())
  assert b"training/steps_ahead.py" in memory  # Where the state was made.


def test_a_run_that_ends_before_says_so(tmp_path, caplog):
  StepProfile(tmp_path, start_step=20, num_steps=5).close()
  assert caplog.messages == [
    "nothing was profiled: the run ended before step 31."
  ]
