"""Runs training commands in parallel, each on its share of the CPU cores."""

import collections
import contextlib
import dataclasses
import datetime as dt
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from vmoe_study.run.exit_codes import PREEMPTED
from vmoe_study.study.pinned import pinned_command
from vmoe_study.training.stop_signals import handled_by, pass_on

LOG_FILE = "train.log"
POLL_SECONDS = 0.2
# If as many runs have failed and none has succeeded, the runner gives up.
MAX_FAILURES = 3


@dataclasses.dataclass(frozen=True)
class Task:
  """One run of a sweep.

  Attributes:
    name: of its cell.
    seed: of the run.
    workdir: of the run; the output of the command is appended to `train.log` in
      it.
    words: options of the `train` command, apart from seed and workdir.
  """

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
    """Name and seed, for messages."""
    return f"{self.name} seed {self.seed}"


class Outcome(NamedTuple):
  """How the tasks ended.

  Attributes:
    failed: tasks whose command failed.
    stopped: whether a signal stopped the runner before all tasks had ended.
  """

  failed: tuple[Task, ...]
  stopped: bool


class TaskRunner:
  """Runs tasks, several at a time, and logs their progress."""

  def __init__(self, tasks: Sequence[Task], jobs: int):
    """Prepares the tasks; `run` starts them.

    Args:
      tasks: run in this order.
      jobs: number of tasks at a time.

    Raises:
      ValueError: there are fewer CPU cores than jobs.
    """
    self._waiting = collections.deque(tasks)
    self._cores = list(_core_shares(jobs))
    self._running: dict[subprocess.Popen, tuple[Task, set[int], float]] = {}
    self._failed: list[Task] = []
    self._count = len(tasks)
    self._done = 0
    self._start = time.monotonic()
    self._stopping = False

  def run(self) -> Outcome:
    """Runs all tasks; on SIGTERM or SIGINT, lets running ones save and stop.

    A second SIGINT kills them and goes to the handler that was there before.
    """
    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), self._stop)
    with handled_by(handlers) as self._handlers_before:
      while self._running or (self._waiting and not self._gives_up()):
        while self._waiting and self._cores and not self._gives_up():
          self._launch(self._waiting.popleft(), self._cores.pop(0))
        time.sleep(POLL_SECONDS)
        for process in [p for p in self._running if p.poll() is not None]:
          self._collect(process)
    return Outcome(tuple(self._failed), self._stopping)

  def _gives_up(self) -> bool:
    hopeless = self._done == len(self._failed) >= MAX_FAILURES
    return self._stopping or hopeless

  def _launch(self, task: Task, cores: set[int]) -> None:
    task.workdir.mkdir(parents=True, exist_ok=True)
    with (task.workdir / LOG_FILE).open("a") as log:
      process = subprocess.Popen(
        pinned_command(cores, task.command),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches it through this process.
      )
    self._running[process] = task, cores, time.monotonic()
    if self._stopping:  # A signal arrived while the process was being started.
      process.terminate()

  def _collect(self, process: subprocess.Popen) -> None:
    task, cores, start = self._running.pop(process)
    self._cores.append(cores)
    if self._stopping:
      return
    if process.returncode == PREEMPTED:
      logging.info("%s was preempted and will be resumed.", task.label)
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

  def _stop(self, number: int, frame: Any) -> None:
    """Asks the running tasks to save and stop."""
    if self._stopping and number == signal.SIGINT:
      for process in list(self._running):
        process.kill()
      pass_on(self._handlers_before[signal.SIGINT], number, frame)
    elif not self._stopping:
      self._stopping = True
      with contextlib.suppress(RuntimeError):  # It may interrupt a print.
        print(
          f"{signal.Signals(number).name}: the runs save, then stop. Ctrl-C "
          "from now on stops them at once.",
          file=sys.stderr,
          flush=True,
        )
      for process in list(self._running):
        process.terminate()


def _core_shares(jobs: int) -> Iterator[set[int]]:
  """Splits the cores that this process may use into disjoint sets."""
  cores = sorted(os.sched_getaffinity(0))
  if not 1 <= jobs <= len(cores):
    raise ValueError(
      f"jobs={jobs}: must be between 1 and the number of CPU cores, "
      f"{len(cores)}."
    )
  for job in range(jobs):
    yield set(cores[job::jobs])
