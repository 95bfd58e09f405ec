"""Runs what is missing of a table of configs, for several seeds.

Every run is a `train` command in a process of its own, so that the sweep can be
stopped or killed at any time: started again, it resumes the runs that had begun
and passes over those that have finished.
"""

import argparse
import collections
import contextlib
import dataclasses
import datetime as dt
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

from vmoe_study.cli import config_flags, tied
from vmoe_study.cli.exit_codes import FAILED, PREEMPTED
from vmoe_study.config import parse
from vmoe_study.options import check_names
from vmoe_study.run.workdir import CONFIG_FILE
from vmoe_study.study.results import SWEEP_FILE, read_run, run_folder

LOG_FILE = "train.log"
POLL_SECONDS = 0.2
MOST_FAILURES = 3  # If as many fail and none succeeds, the rest would, too.


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "grid",
    metavar="FILE.py:TABLE",
    help="a file with TABLES of rows, and which of them: "
    "configs/tables.py:laptop",
  )
  parser.add_argument(
    "--root", required=True, metavar="DIR", help="of all its runs"
  )
  parser.add_argument(
    "--seeds", type=int, default=1, help="runs of each row, with seeds 0, 1, .."
  )
  parser.add_argument(
    "--jobs",
    type=int,
    default=1,
    help="runs at a time, each on its share of the CPU cores",
  )
  parser.add_argument(
    "--only", default="", metavar="TEXT", help="rows whose name contains TEXT"
  )
  parser.add_argument(
    "--dry-run", action="store_true", help="print what would run, and stop"
  )


@dataclasses.dataclass(frozen=True)
class Task:
  """One run of the sweep."""

  name: str
  seed: int
  workdir: Path
  words: Sequence[str]

  @property
  def command(self) -> list[str]:
    """The command line of the run."""
    python = [sys.executable, "-m", "vmoe_study", "train"]
    seed = f"--config.seed={self.seed}"
    return [*python, *self.words, seed, f"--workdir={self.workdir}"]

  @property
  def label(self) -> str:
    """As people call it."""
    return f"{self.name} seed {self.seed}"


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  for name in ("seeds", "jobs"):
    if getattr(args, name) < 1:
      raise ValueError(f"--{name}={getattr(args, name)}: must be at least 1.")
  rows = load_table(args.grid)
  cells = {name: _cell(row) for name, row in rows.items()}
  root = Path(args.root)
  plan = _plan(root, cells, args.seeds)
  chosen = _choose(cells, args.only)
  # Seed by seed: whenever it stops, the cells are compared on equal terms.
  tasks = [
    Task(name, seed, Path(run_folder(root, name, seed)), cell["words"])
    for seed in range(args.seeds)
    for name, cell in chosen.items()
  ]
  missing = [task for task in tasks if not _is_finished(task.workdir)]
  logging.info("%d of %d runs are missing.", len(missing), len(tasks))
  for name in dict.fromkeys(task.name for task in missing):
    _check_start(name, cells[name]["config"]["initialize"])
  if args.dry_run:
    print("\n".join(shlex.join(task.command) for task in missing))
    return 0
  _write_plan(root, plan)
  return _Runner(missing, args.jobs).run()


def load_table(grid: str) -> dict[str, Any]:
  """The rows of a table, by name.

  Args:
    grid: "FILE.py:TABLE".

  Raises:
    ValueError: there is no such file or table.
  """
  file, _, table = grid.partition(":")
  if not Path(file).is_file():
    raise ValueError(f"{grid}: there is no file {file}. Give FILE.py:TABLE.")
  tables = getattr(config_flags.load_module(file), "TABLES", {})
  if table not in tables:
    raise ValueError(
      f"{grid}: must be FILE.py:TABLE, where TABLE is one of "
      f"{', '.join(tables)}."
    )
  return {row.name: row for row in tables[table]}


def _cell(row: Any) -> dict[str, Any]:
  """What `sweep.json` says of a row; raises ValueError if its config is wrong.

  A sweep must not find out after hours that its last row cannot run.
  """
  words = [f"--config={row.config}", *row.flags]
  config = config_flags.load_file(row.config, row.flags)
  parse(config)
  del config["seed"]
  expected = dict(row.expected)
  return {
    "words": words,
    "config": config,
    "expected": expected,
    "source": "; ".join(filter(None, [row.source, row.note])),
  }


def _choose(cells: Mapping[str, Any], text: str) -> dict[str, Any]:
  """The cells whose names contain a text; raises ValueError if none does."""
  chosen = {name: cell for name, cell in cells.items() if text in name}
  if not chosen:
    parts = {part for name in cells for part in name.split(",")}
    check_names("--only", [text], parts)
  return chosen


def _check_start(name: str, start: Mapping[str, Any]) -> None:
  """Raises ValueError if a row needs a trained model that is not there."""
  if start["kind"] == "checkpoint" and not epath.Path(start["path"]).exists():
    raise ValueError(
      f"row {name}: initialize.path={start['path']!r}: there is no such "
      "workdir to start from. Put that of a trained model into the table, or "
      "leave the row out with --only=TEXT."
    )


def _plan(root: Path, cells: Mapping[str, Any], seeds: int) -> dict[str, Any]:
  """What the sweep is to hold; more seeds and rows may be added.

  Raises:
    ValueError: the root holds runs of other configs.
  """
  plan = json.loads(json.dumps({"cells": cells}))
  found = {"seeds": [], "cells": {}}
  if (root / SWEEP_FILE).exists():
    found = json.loads((root / SWEEP_FILE).read_text())
  changed = [
    name
    for name, cell in found["cells"].items()
    if cell["config"] != plan["cells"].get(name, {}).get("config")
  ]
  if changed:
    raise ValueError(
      f"{root} holds a sweep whose rows differ from this one's: "
      f"{', '.join(changed[:3])}{', ...' if changed[3:] else ''}. Choose "
      "another --root, or the table that it was started with."
    )
  return {"seeds": list(range(max(seeds, len(found["seeds"])))), **plan}


def _write_plan(root: Path, plan: Mapping[str, Any]) -> None:
  """Leaves word of it for `report`, which shows what is missing."""
  root.mkdir(parents=True, exist_ok=True)
  part = (root / SWEEP_FILE).with_suffix(".part")
  part.write_text(json.dumps(plan, indent=1) + "\n")
  part.replace(root / SWEEP_FILE)


def _is_finished(workdir: Path) -> bool:
  if not (workdir / CONFIG_FILE).exists():
    return False
  return read_run(workdir)[1] is not None


class _Runner:
  """Runs tasks, so many at a time, and tells how far they are."""

  def __init__(self, tasks: Sequence[Task], jobs: int):
    self._waiting = collections.deque(tasks)
    self._cores = list(_shares(jobs))
    self._running: dict[subprocess.Popen, tuple[Task, set[int], float]] = {}
    self._failed: list[Task] = []
    self._count = len(tasks)
    self._done = 0
    self._start = time.monotonic()
    self._stopping = False

  def run(self) -> int:
    """The exit code: 0 if all finished, 1 if some failed, 75 if stopped."""
    with _on_sigterm(self._stop):
      while self._running or (self._waiting and not self._gives_up()):
        while self._waiting and self._cores and not self._gives_up():
          self._launch(self._waiting.popleft(), self._cores.pop(0))
        time.sleep(POLL_SECONDS)
        for process in [p for p in self._running if p.poll() is not None]:
          self._collect(process)
    if self._stopping:
      logging.warning("Stopped. Run again to go on.")
      return PREEMPTED
    for task in self._failed:
      log = task.workdir / LOG_FILE
      logging.error("FAILED: %s; see %s", task.label, log)
    return FAILED if self._failed else 0

  def _gives_up(self) -> bool:
    hopeless = self._done == len(self._failed) >= MOST_FAILURES
    return self._stopping or hopeless

  def _launch(self, task: Task, cores: set[int]) -> None:
    task.workdir.mkdir(parents=True, exist_ok=True)
    with (task.workdir / LOG_FILE).open("a") as log:
      process = subprocess.Popen(
        tied.command(cores, task.command),
        stdout=log,
        stderr=subprocess.STDOUT,
      )
    self._running[process] = task, cores, time.monotonic()
    if self._stopping:  # Asked for while it was started.
      process.terminate()

  def _collect(self, process: subprocess.Popen) -> None:
    task, cores, start = self._running.pop(process)
    self._cores.append(cores)
    if self._stopping:
      return
    if process.returncode == PREEMPTED:
      logging.info("%s was preempted: it goes on.", task.label)
      self._waiting.appendleft(task)
      return
    self._done += 1
    if process.returncode:
      self._failed.append(task)
    now = time.monotonic()
    left = (now - self._start) / self._done * (self._count - self._done)
    logging.info(
      "[%d/%d] %s: %s in %.0f s, ETA %s",
      self._done,
      self._count,
      task.label,
      f"exit code {process.returncode}" if process.returncode else "finished",
      now - start,
      dt.timedelta(seconds=round(left)),
    )

  def _stop(self, *_) -> None:
    """Asks the runs to save and stop."""
    self._stopping = True
    for process in self._running:
      process.terminate()


def _shares(jobs: int) -> Iterator[set[int]]:
  """Disjoint sets of this process's cores; together all of them."""
  cores = sorted(os.sched_getaffinity(0))
  if jobs > len(cores):
    raise ValueError(
      f"--jobs={jobs}: there are {len(cores)} CPU cores. Use so many at most."
    )
  for job in range(jobs):
    yield set(cores[job::jobs])


@contextlib.contextmanager
def _on_sigterm(handler) -> Iterator[None]:
  before = signal.signal(signal.SIGTERM, handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
