"""Runs training commands in parallel, each on its share of the CPU cores.

The commands share a compilation cache, so that a program is compiled once for
all seeds.
"""

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
from typing import Any, NamedTuple

from absl import logging
from etils import epath

from vmoe_study.console.progress import Progress
from vmoe_study.parallel import compilation_cache
from vmoe_study.run.exit_codes import PREEMPTED
from vmoe_study.run.finished import last_step
from vmoe_study.study.pinned import pinned_command
from vmoe_study.training.metrics_file import read_metrics
from vmoe_study.training.stop_signals import handled_by, pass_on

LOG_FILE = "train.log"
POLL_SECONDS = 0.2
SHOW_SECONDS = 5.0  # Between updates of the progress of the runs.
LINE_SECONDS = 60.0
# If this many runs have failed and none has succeeded, the runner gives up.
MAX_FAILURES = 3


@dataclasses.dataclass(frozen=True)
class Task:
  """One run of a sweep.

  Attributes:
    name: name of its cell.
    seed: seed of the run.
    workdir: workdir of the run; the output of the command is appended to its
      `train.log`.
    options: options of the `train` command, apart from seed and workdir.
  """

  name: str
  seed: int
  workdir: epath.Path
  options: Sequence[str]

  @property
  def words(self) -> list[str]:
    """The command and its options."""
    seed = f"--config.seed={self.seed}"
    return ["train", *self.options, seed, f"--workdir={self.workdir}"]

  @property
  def command(self) -> list[str]:
    """The command line of the run on this machine."""
    return [sys.executable, "-m", "vmoe_study", *self.words]

  @property
  def label(self) -> str:
    """Name and seed, for messages."""
    return f"{self.name} seed {self.seed}"


class Outcome(NamedTuple):
  """The outcome of the tasks.

  Attributes:
    failed: tasks whose command failed.
    stopped: whether a signal stopped the runner before all tasks had ended.
    given_up: number of tasks not started because the first ones failed.
  """

  failed: tuple[Task, ...]
  stopped: bool
  given_up: int


@dataclasses.dataclass(frozen=True)
class _Running:
  """A running task.

  Attributes:
    task: the task.
    cores: its CPU cores.
    start: start time.
    before: fraction of the run that had been trained before the start.
  """

  task: Task
  cores: set[int]
  start: float
  before: float

  def work(self) -> float:
    """The fraction of the run that has been trained since the start."""
    return max(_fraction(self.task.workdir) - self.before, 0.0)

  def __str__(self) -> str:
    step, num_steps = _steps(self.task.workdir)
    at = f"step {step} of {num_steps}" if num_steps else "starting"
    return f"{self.task.label} ({at})"


def _steps(workdir: epath.Path) -> tuple[int, int]:
  """The last step with metrics and the length of the run; 0 if unknown."""
  rows = list(read_metrics(workdir))
  step = int(rows[-1]["step"]) if rows else 0
  return step, last_step(rows) or 0


def _fraction(workdir: epath.Path) -> float:
  step, num_steps = _steps(workdir)
  return step / num_steps if num_steps else 0.0


class TaskRunner:
  """Runs tasks, several at a time, and shows their progress."""

  def __init__(self, tasks: Sequence[Task], jobs: int, root: epath.Path):
    """Prepares the tasks; `run` starts them.

    Args:
      tasks: run in this order.
      jobs: number of tasks at a time.
      root: holds the compilation cache, unless the environment names a folder
        for it.

    Raises:
      ValueError: there are fewer CPU cores than jobs.
    """
    self._waiting = collections.deque(tasks)
    self._cores = list(_core_shares(jobs))
    self._root = root
    self._running: dict[subprocess.Popen, _Running] = {}
    self._failed: list[Task] = []
    self._count = len(tasks)
    self._done = 0
    # Training work, in runs: the total of these tasks, and that done by tasks
    # that have ended.
    self._all_work = sum(1.0 - _fraction(task.workdir) for task in tasks)
    self._work = 0.0
    self._start = time.monotonic()
    self._stopping = False

  def run(self) -> Outcome:
    """Runs all tasks; on SIGTERM or SIGINT, lets running ones save and stop.

    A second SIGINT kills them and goes to the previous handler.
    """
    handlers = dict.fromkeys((signal.SIGTERM, signal.SIGINT), self._stop)
    what = f"sweep of {self._count} runs"
    # Without a total, because the runs' steps give a better estimate of the
    # remaining time.
    progress = Progress(what, None, "runs", every=LINE_SECONDS)
    with handled_by(handlers) as self._handlers_before, progress:
      shown = time.monotonic()
      while self._running or (self._waiting and not self._gives_up()):
        while self._waiting and self._cores and not self._gives_up():
          self._launch(self._waiting.popleft(), self._cores.pop(0))
        time.sleep(POLL_SECONDS)
        done = self._done
        for process in [p for p in self._running if p.poll() is not None]:
          self._collect(process)
        is_due = time.monotonic() - shown >= SHOW_SECONDS
        if is_due or self._done > done:
          shown = time.monotonic()
          progress.advance(self._done - done, self._now())
    given_up = 0 if self._stopping else len(self._waiting)
    return Outcome(tuple(self._failed), self._stopping, given_up)

  def _now(self) -> str:
    """The running tasks and the estimated remaining time."""
    running = ", ".join(map(str, self._running.values()))
    return f"ETA {self._eta()}" + f", now {running}" * bool(running)

  def _eta(self) -> str:
    """The remaining time, from the fraction of all runs trained so far."""
    work = self._work + sum(r.work() for r in self._running.values())
    if not work:
      return "unknown"
    left = (self._all_work - work) * (time.monotonic() - self._start) / work
    return str(dt.timedelta(seconds=round(max(left, 0.0))))

  def _gives_up(self) -> bool:
    hopeless = self._done == len(self._failed) >= MAX_FAILURES
    return self._stopping or hopeless

  def _launch(self, task: Task, cores: set[int]) -> None:
    task.workdir.mkdir(parents=True, exist_ok=True)
    with (task.workdir / LOG_FILE).open("a") as log:
      process = subprocess.Popen(
        pinned_command(cores, task.command),
        env=self._environment(len(cores)),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches it through this process.
      )
    before = _fraction(task.workdir)
    self._running[process] = _Running(task, cores, time.monotonic(), before)
    begun = "resumes" if before else "starts"
    logging.info("%s %s: %s", task.label, begun, task.workdir / LOG_FILE)
    if self._stopping:  # A signal arrived while the process was being started.
      process.terminate()

  def _environment(self, num_cores: int) -> dict[str, str]:
    """The environment of the commands, with the compilation cache."""
    folder = compilation_cache.folder(self._root, "cpu", num_cores)
    options = {
      "JAX_COMPILATION_CACHE_DIR": str(folder),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return options | os.environ

  def _collect(self, process: subprocess.Popen) -> None:
    ended = self._running.pop(process)
    task = ended.task
    self._cores.append(ended.cores)
    if self._stopping:
      return
    if process.returncode == PREEMPTED:
      logging.info("%s was preempted and will be resumed.", task.label)
      self._work += ended.work()
      self._waiting.appendleft(task)
      return
    self._done += 1
    if process.returncode:
      self._failed.append(task)
    self._work += 1.0 - ended.before
    logging.info(
      "[%d/%d] %s: %s in %.0f s, ETA %s",
      self._done,
      self._count,
      task.label,
      f"exit code {process.returncode}" if process.returncode else "finished",
      time.monotonic() - ended.start,
      self._eta(),
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
          "now stops them at once.",
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
