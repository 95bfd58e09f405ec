"""Runs killed or stopped, again and again, end as if nothing had happened."""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from vmoe_study.checkpoint.load import complete_steps, read_manifest
from vmoe_study.cli.main import main
from vmoe_study.run import lock
from vmoe_study.training.metrics_file import read_metrics

from ..programs import xla_flags

pytestmark = pytest.mark.process

ROOT = pathlib.Path(__file__).parents[2]
STEPS, KILLS = 90, 2
SAVING = re.compile(r"\d+\.orbax-checkpoint-tmp.*")
REPORTED = re.compile(r"step \d+/")
TINY = [
  "--config=configs/digits.py",
  "--config.model.fields.width=16",
  "--config.model.fields.depth=1",
  "--config.model.fields.mlp_dim=32",
  "--config.model.moe.blocks=every 1",
  "--config.data.ops=pad_crop(2)|value_range(-1, 1)",
  "--config.train.num_epochs=0",
  f"--config.train.num_steps={STEPS}",
  "--config.train.schedule.warmup_steps=4",
  "--config.train.num_workers=2",
  "--config.train.save_every=3",
  "--config.train.report_every=3",
  "--config.fewshot={}",
]
TIMING = ("second", "wait")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """Compiled programs are kept: a start then takes seconds."""
  folder = tmp_path_factory.mktemp("shared")
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": xla_flags(1),
    "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def start(workdir, environment, *more):
  words = [sys.executable, "-m", "vmoe_study", "train", *TINY]
  with open(workdir.with_suffix(".log"), "w") as log:
    return subprocess.Popen(
      [*words, f"--workdir={workdir}", *more],
      cwd=ROOT,
      env=environment,
      stdout=log,
      stderr=subprocess.STDOUT,
    )


def finish(workdir, environment, *more):
  run = start(workdir, environment, *more)
  assert run.wait(timeout=500) == 0, workdir.with_suffix(".log").read_text()


def descendants(pid):
  """Process ids of children, of whatever thread, and theirs."""
  threads = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
  found = [int(child) for file in threads for child in file.read_text().split()]
  return found + [pid for child in found for pid in descendants(child)]


def alive(pid):
  try:
    status = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except FileNotFoundError:
    return False
  return status.rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, run, seconds=400):
  deadline = time.monotonic() + seconds
  while not condition():
    assert run is None or run.poll() is None, "it ended"
    assert time.monotonic() < deadline
    time.sleep(0.02)


def kill(run):
  """Kills the main process; its workers must end by themselves."""
  workers = descendants(run.pid)
  os.kill(run.pid, signal.SIGKILL)
  run.wait()
  wait_for(lambda: not any(map(alive, workers)), None, seconds=20)
  return len(workers)


def kill_worker(run):
  """Kills one of the processes that read data."""

  def is_worker(pid):
    return b"spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()

  worker = next(filter(is_worker, descendants(run.pid)))
  os.kill(worker, signal.SIGKILL)


def fingerprints(workdir):
  directory = workdir / "checkpoints"
  manifest = read_manifest(directory / str(STEPS))
  return manifest["items"], complete_steps(directory)


def measured(workdir):
  return [
    {k: v for k, v in row.items() if not any(t in k for t in TIMING)}
    for row in read_metrics(workdir)
  ]


@pytest.fixture(scope="module")
def undisturbed(environment, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
  finish(workdir, environment)
  return workdir


def test_killed_at_any_moment_and_stopped(undisturbed, environment, tmp_path):
  """Also while it saves, which it does nearly all of the time here."""
  workdir, choice = tmp_path / "work", random.Random(0)
  directory, log = workdir / "checkpoints", workdir.with_suffix(".log")
  reached = 0
  for _ in range(KILLS):
    run = start(workdir, environment)
    goal = reached + choice.randint(3, 12)

    def is_there(goal=goal):
      saving = any(SAVING.fullmatch(path.name) for path in directory.glob("*"))
      return saving and max(complete_steps(directory), default=0) >= goal

    wait_for(is_there, run)
    assert kill(run) >= 2
    reached = max(complete_steps(directory), default=0)
    assert reached < STEPS, "it was killed too late"
  run = start(workdir, environment)  # And once with notice.
  wait_for(lambda: max(complete_steps(directory), default=0) > reached, run)
  run.terminate()
  assert run.wait(timeout=60) == 75
  stopped, reached = reached, max(complete_steps(directory))
  assert stopped < reached < STEPS

  # Then a process that reads data is killed, and it saves because of that.
  never = ["--config.train.save_every=0", "--allow-change"]
  run = start(workdir, environment, *never)
  wait_for(lambda: REPORTED.search(log.read_text()), run)
  kill_worker(run)
  assert run.wait(timeout=60) == 2
  said = log.read_text()
  assert f"step {reached} of {STEPS}" in said
  last = said.splitlines()[-1]
  assert "Traceback" not in said and "leaked" not in said
  assert last.startswith("error: a process that reads data has ended: Killed.")
  assert "train.num_workers" in last
  stopped, reached = reached, max(complete_steps(directory))
  assert stopped < reached < STEPS
  (directory / "9999.orbax-checkpoint-tmp").mkdir()  # Whatever the kills left.

  finish(workdir, environment, "--allow-change")
  assert f"step {reached} of {STEPS}" in log.read_text()
  assert fingerprints(workdir) == fingerprints(undisturbed)
  assert measured(workdir) == measured(undisturbed)
  assert not list(directory.glob("*tmp*"))
  assert not list(directory.glob("damaged*"))


def test_a_second_run_in_the_same_workdir_is_refused(tmp_path, capsys):
  workdir = tmp_path / "work"
  with lock.hold(workdir):
    words = [*TINY, "--config.train.num_workers=0", f"--workdir={workdir}"]
    assert main(["train", *words]) == 2
  said = capsys.readouterr().err
  assert f"in use by another run, process {os.getpid()}" in said
