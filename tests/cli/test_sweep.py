"""A sweep runs what is missing, and a killed one goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from vmoe_study.cli.main import main
from vmoe_study.study import results

TABLES = """
import dataclasses

@dataclasses.dataclass(frozen=True)
class Row:
  name: str
  arguments: str
  expected: tuple = ()
  source: str = ""

  @property
  def config(self):
    return "configs/digits.py:" + self.arguments

  @property
  def flags(self):
    short = {
      "num_epochs": 0.0,
      "num_steps": 6,
      "save_every": 2,
      "report_every": 1,
      "schedule.warmup_steps": 0,
    }
    return [f"--config.train.{k}={v}" for k, v in short.items()]

TABLES = {
  "one": [Row("soft", "router=soft")],
  "other": [Row("soft", "router=soft,capacity=2")],
  "wrong": [Row("soft", "router=soft"), Row("bad", "router=hard")],
}
"""
IGNORED = ("seconds", "per_second", "wait_share")


@pytest.fixture
def tables(tmp_path):
  file = tmp_path / "tables.py"
  file.write_text(textwrap.dedent(TABLES))
  return file


def metrics(root):
  """All numbers of the one run of a sweep, without times."""
  [cell] = results.load([root])
  return {
    name: value
    for name, value in cell.runs[0].items()
    if not name.endswith(IGNORED)
  }


def start(grid, root):
  command = [sys.executable, "-m", "vmoe_study", "sweep", grid]
  return subprocess.Popen([*command, f"--root={root}"])


def test_a_killed_sweep_gives_the_numbers_of_one_that_was_not(tables, tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  grid = f"{tables}:one"
  assert main(["sweep", grid, "--root", str(whole)]) == 0

  process = start(grid, killed)
  checkpoints = killed / "soft" / "seed0" / "checkpoints"
  deadline = time.monotonic() + 300
  while not any(checkpoints.glob("[0-9]*/manifest")):
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  # The run that it had started stops as well, by itself.
  while main(["sweep", grid, "--root", str(killed)]):
    assert time.monotonic() < deadline
    time.sleep(1)
  assert metrics(killed) == metrics(whole)
  assert metrics(whole)["test/accuracy"] > 0

  # There is nothing left to do, and that takes no run.
  log = killed / "soft" / "seed0" / "train.log"
  before = log.read_text()
  assert main(["sweep", grid, "--root", str(killed)]) == 0
  assert log.read_text() == before


def test_dry_run_prints_the_commands(tables, tmp_path, capsys):
  root = tmp_path / "root"
  words = ["sweep", f"{tables}:one", "--root", str(root), "--seeds=2"]
  assert main([*words, "--dry-run"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 2
  assert "--config.seed=1" in lines[1]
  plan = json.loads((root / results.SWEEP_FILE).read_text())
  assert plan["seeds"] == [0, 1]


def test_a_root_belongs_to_its_table(tables, tmp_path, capsys):
  root = str(tmp_path / "root")
  assert main(["sweep", f"{tables}:one", "--root", root, "--dry-run"]) == 0
  assert main(["sweep", f"{tables}:other", "--root", root, "--dry-run"]) == 2
  assert "another --root" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("words", "reason"),
  [
    (["FILE:none"], "no table 'none'"),
    (["nowhere.py:one"], "there is no file nowhere.py"),
    (["FILE:one", "--jobs=1000"], "CPU cores"),
    (["FILE:one", "--seeds=0"], "--seeds=0"),
    (["FILE:wrong"], "hard"),
  ],
)
def test_what_is_wrong_is_said_before_anything_runs(
  tables, tmp_path, capsys, words, reason
):
  grid, *rest = [word.replace("FILE", str(tables)) for word in words]
  root = tmp_path / "root"
  assert main(["sweep", grid, *rest, "--root", str(root)]) == 2
  assert reason in capsys.readouterr().err
  assert not (root / "soft").exists()
