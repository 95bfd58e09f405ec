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

from ..programs import unchecking_python, xla_flags

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


def start_two(python, *arguments, **environment):
  """Starts a command in two processes, each with four devices."""
  environment |= {"PYTHON": python, "XLA_FLAGS": xla_flags(4)}
  return subprocess.Popen(
    ["launch/local.sh", "--processes=2", "--devices=4", "--", *arguments],
    cwd=ROOT,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.fixture(scope="module")
def runs(digits_folder, tmp_path_factory):
  """Workdirs of the same run in one process and in two; what two printed.

  Two steps of the second one are traced.
  """
  folder = tmp_path_factory.mktemp("runs")
  one, two = folder / "one", folder / "two"
  train, data = ["train", *TINY], str(digits_folder)
  traced = [*train, f"--workdir={two}", "--profile=2"]
  pair = start_two(unchecking_python(folder), *traced, TFDS_DATA_DIR=data)
  try:
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(tfds_constants, "DATA_DIR", data)
      assert main([*train, f"--workdir={one}"]) == 0
    output, _ = pair.communicate(timeout=600)
  finally:
    pair.terminate()
  assert pair.returncode == 0, output[-4000:]
  return one, two, output


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


# A Python for which a command only writes down its process, and waits.
WAITING = f"""#!/bin/bash
case "$1" in
  -c) exec {sys.executable} "$@" ;;
  */check_command.py) exit 0 ;;
esac
echo $$ > "$STARTED/${{*: -1}}"
exec sleep 100
"""


def test_a_killed_process_takes_the_others_along(tmp_path):
  python = tmp_path / "python"
  python.write_text(WAITING)
  python.chmod(0o755)
  run = start_two(str(python), "train", STARTED=str(tmp_path))
  files = [tmp_path / f"--process-id={number}" for number in range(2)]
  while not all(file.exists() and file.read_text() for file in files):
    assert run.poll() is None
    time.sleep(0.05)
  first, second = (int(file.read_text()) for file in files)
  os.kill(second, 9)
  run.communicate(timeout=20)
  assert run.returncode == 128 + 9
  with pytest.raises(ProcessLookupError):
    os.kill(first, 0)
