"""Two processes x 4 devices, by the launch script, are one process x 8."""

import gzip
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
from tensorflow_datasets.core import constants as tfds_constants

from vmoe_study.cli.main import main
from vmoe_study.training.metrics_file import read_metrics

from ..programs import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
TINY = [
  "--config=configs/digits.py",
  "--config.mesh.expert=4",
  "--config.model.fields.width=16",
  "--config.model.fields.depth=2",
  "--config.model.fields.mlp_dim=32",
  "--config.train.num_epochs=0",
  "--config.train.num_steps=40",
  "--config.train.schedule.warmup_steps=4",
  "--config.train.report_every=10",
  "--config.shots=(1,)",
]
TIMING = ("second", "wait")


def command(data, *arguments, processes=1, devices=8):
  """Starts a command of the program in one or more processes."""
  words = [sys.executable, "-m", "vmoe_study"]
  environment = {"PYTHON": sys.executable, "TFDS_DATA_DIR": str(data)}
  environment |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(devices)}
  if processes > 1:
    words = ["launch/local.sh", f"--processes={processes}"]
    words += [f"--devices={devices}", "--"]
  return subprocess.Popen(
    [*words, *arguments],
    cwd=ROOT,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process):
  try:
    output, _ = process.communicate(timeout=600)
  finally:
    process.kill()
  assert process.returncode == 0, output[-4000:]
  return output


@pytest.fixture(scope="module")
def runs(digits_folder, tmp_path_factory):
  """Workdirs of the same run in one process and in two; what two printed.

  Two steps of the second one are traced.
  """
  folder = tmp_path_factory.mktemp("runs")
  one, two = folder / "one", folder / "two"
  train = ["train", *TINY]
  alone = command(digits_folder, *train, f"--workdir={one}")
  traced = *train, f"--workdir={two}", "--profile=2"
  pair = command(digits_folder, *traced, processes=2, devices=4)
  finish(alone)
  return one, two, finish(pair)


def measured(workdir):
  return [
    {k: v for k, v in row.items() if not any(t in k for t in TIMING)}
    for row in read_metrics(workdir)
  ]


def test_training_and_evaluation_agree(runs):
  one, two, _ = runs
  expected, found = measured(one), measured(two)
  assert [row["step"] for row in found] == [row["step"] for row in expected]
  assert expected[-1]["test/accuracy"] > 0.15
  for row, other in zip(found, expected, strict=True):
    assert row == pytest.approx(other, rel=1e-3)


def test_only_the_first_process_reports(runs):
  _, _, output = runs
  assert output.count("| softmax_expert_choice |") == 1


def test_every_process_traces_its_steps(runs):
  _, two, _ = runs
  folder = two / "plugins" / "profile" / "steps_11-12"
  for process in (0, 1):
    assert (folder / f"process_{process}.memory.prof").exists()
    trace = gzip.decompress(
      (folder / f"process_{process}.trace.json.gz").read_bytes()
    )
    names = [event.get("name") for event in json.loads(trace)["traceEvents"]]
    assert names.count("train") == 2


def test_one_process_evaluates_what_two_have_trained(
  runs, digits_folder, tmp_path, monkeypatch
):
  monkeypatch.setattr(tfds_constants, "DATA_DIR", str(digits_folder))
  _, two, _ = runs
  out = tmp_path / "metrics.json"
  assert main(["evaluate", f"--workdir={two}", f"--out={out}"]) == 0
  found, expected = json.loads(out.read_text()), measured(two)[-1]
  shared = {"test/accuracy", "test/loss", *(found.keys() & expected.keys())}
  assert {k: found[k] for k in shared} == pytest.approx(
    {k: expected[k] for k in shared}, rel=1e-4
  )


def test_a_killed_process_takes_the_others_along(digits_folder, tmp_path):
  train = ["train", *TINY, f"--workdir={tmp_path}"]
  run = command(digits_folder, *train, processes=2, devices=4)
  while not (tmp_path / "config.json").exists():  # They are connected by now.
    assert run.poll() is None
    time.sleep(0.2)
  children = f"/proc/{run.pid}/task/{run.pid}/children"
  _, second = pathlib.Path(children).read_text().split()
  os.kill(int(second), 9)
  run.communicate(timeout=20)
  assert run.returncode == 128 + 9
