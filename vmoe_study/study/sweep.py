"""A sweep: every row of a table of configs, run for several seeds.

Each run is a `train` command in a process of its own, so that a sweep can be
stopped or killed at any time. Started again, it resumes the runs that had begun
and skips those that have finished. What one run has compiled, the others load.
"""

import functools
import json
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from vmoe_study.config import parse
from vmoe_study.data.builders import MissingDataError
from vmoe_study.data.sources import open_source
from vmoe_study.files.ranges import is_remote
from vmoe_study.options import OptionsError, check_names, problems_of
from vmoe_study.run.config_file import load_config
from vmoe_study.study import sweep_manifest
from vmoe_study.study.results import Cell, completed, final_metrics
from vmoe_study.study.sweep_manifest import SweepManifest, run_folder
from vmoe_study.study.table_file import Row
from vmoe_study.study.task_runner import Outcome, Task, TaskRunner
from vmoe_study.training.optimizer import check_schedule


class Sweep:
  """The runs of some rows in a root folder."""

  def __init__(
    self,
    rows: Mapping[str, Row],
    root: epath.PathLike,
    seeds: int = 1,
    overrides: Sequence[str] = (),
  ):
    """Checks the config of every row, and the root.

    Args:
      rows: by name.
      root: folder for all runs; it may hold runs of the same rows.
      seeds: number of runs of each row, with seeds 0, 1, ...
      overrides: changes of fields in all rows, "FIELD=VALUE".

    Raises:
      ValueError: configs are wrong, or the root holds runs of other configs.
    """
    if seeds < 1:
      raise ValueError(f"seeds={seeds}: must be at least 1.")
    self._root, self._seeds = epath.Path(root), seeds
    cells = make_cells(rows, overrides)
    self._manifest = _extend_manifest(self._root, cells, seeds)

  def missing_runs(
    self, only: str = "", known: Sequence[Cell] = ()
  ) -> list[Task]:
    """The runs that have not finished, ordered by seed.

    If the sweep is stopped early, all cells therefore have the same seeds,
    except perhaps the last one.

    Args:
      only: skip rows whose names do not contain this text.
      known: results of earlier runs, elsewhere; a run of the same config and
        seed is not missing.

    Raises:
      ValueError: no name contains `only`, or runs should start from trained
        models that do not exist.
    """
    cells = self._manifest.cells
    chosen = [name for name in cells if only in name]
    if not chosen:
      parts = {part for name in cells for part in name.split(",")}
      check_names("only", [only], parts)
    tasks = [
      Task(
        name,
        seed,
        run_folder(self._root, name, seed),
        cells[name]["words"],
      )
      for seed in range(self._seeds)
      for name in chosen
    ]
    done = {
      (cell.name, seed)
      for cell in known
      if cell.name in cells
      and completed(cell.config) == cells[cell.name]["config"]
      for seed in cell.runs
    }
    missing = [
      task
      for task in tasks
      if (task.name, task.seed) not in done
      and final_metrics(task.workdir) is None
    ]
    logging.info("%d of %d runs are missing.", len(missing), len(tasks))
    names = dict.fromkeys(task.name for task in missing)
    _check_starts({name: cells[name]["config"]["initialize"] for name in names})
    return missing

  def run(self, tasks: list[Task], jobs: int = 1) -> Outcome:
    """Writes the manifest and runs tasks.

    Args:
      tasks: of `missing_runs`.
      jobs: number of runs at a time, each on its share of the CPU cores.

    Raises:
      ValueError: there are fewer CPU cores than jobs, training data are not
        there or too few for the schedule of a row, or the root is not local.
    """
    if is_remote(self._root):
      raise ValueError(
        f"root={self._root}: runs on this machine need a local folder. Give "
        "one, or --launcher to start the runs elsewhere."
      )
    runner = TaskRunner(tasks, jobs, self._root)
    names = dict.fromkeys(task.name for task in tasks)
    _check_data({n: self._manifest.cells[n]["config"] for n in names})
    sweep_manifest.write(self._root, self._manifest)
    return runner.run()

  def launch(self, tasks: list[Task], launcher: Sequence[str]) -> None:
    """Writes the manifest and starts tasks elsewhere, without waiting for them.

    Args:
      tasks: of `missing_runs`.
      launcher: a command that takes the name of a job and, after `--`, the
        command to run, as the scripts of `launch/` do. The name is that of the
        root, with the number of the row and the seed.

    Raises:
      ValueError: the launcher failed.
    """
    sweep_manifest.write(self._root, self._manifest)
    numbers = {name: number for number, name in enumerate(self._manifest.cells)}
    for task in tasks:
      name = f"{self._root.name}-{numbers[task.name]}-seed{task.seed}"
      name = re.sub("[^a-z0-9]+", "-", name.lower())
      logging.info("%s is launched as %s", task.label, name)
      command = [*launcher, f"--name={name}", "--", *task.words]
      try:
        subprocess.run(command, check=True)
      except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(
          f"launcher={shlex.join(launcher)}: {str(error).rstrip('.')}. Run the "
          "sweep again when the cause is removed; runs that have been launched "
          "and not finished are launched again."
        ) from error


def make_cells(
  rows: Mapping[str, Row], overrides: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
  """The entries of rows, with changes of all of them, in the manifest.

  Checks all configs before any run starts, as runs may take hours.

  Raises:
    OptionsError: configs are wrong; names all rows and problems.
  """
  cells: dict[str, dict[str, Any]] = {}
  problems: list[str] = []
  for name, row in rows.items():
    try:
      cells[name] = _cell(row, [*row.overrides, *overrides])
    except ValueError as error:
      problems += [f"row {name}: {text}" for text in problems_of(error)]
  if problems:
    raise OptionsError(problems)
  return cells


def _cell(row: Row, overrides: Sequence[str]) -> dict[str, Any]:
  config = load_config(row.config, overrides).to_dict()
  del config["seed"]
  options = [f"--config.{override}" for override in overrides]
  return {
    "words": [f"--config={row.config}", *options],
    "config": config,
    "expected": dict(row.expected),
    "source": "; ".join(filter(None, [row.source, row.note])),
  }


def _check_starts(starts: Mapping[str, Mapping[str, Any]]) -> None:
  """Raises OptionsError for rows that start from a workdir that is not there.

  Args:
    starts: by row, the section `initialize` of its config.
  """
  problems = [
    f"row {name}: initialize.path={start['path']!r}: there is no such workdir. "
    "Give the workdir of a trained model in the table, or leave the row out "
    "with --only=TEXT."
    for name, start in starts.items()
    if start["kind"] == "checkpoint" and not epath.Path(start["path"]).exists()
  ]
  if problems:
    raise OptionsError(problems)


def _check_data(configs: Mapping[str, Any]) -> None:
  """Raises OptionsError for rows whose training data are missing or too few.

  Args:
    configs: by row.
  """
  num_examples = functools.cache(lambda spec: len(open_source(spec)))
  problems = []
  for name, values in configs.items():
    config = parse(values)
    parts = [config.data, *(part.data for part in config.mixture.values())]
    try:
      steps = config.train.total_steps(sum(map(num_examples, parts)))
      check_schedule(config.train.schedule, steps)
    except (ValueError, MissingDataError) as error:
      problems += [f"row {name}: {text}" for text in problems_of(error)]
  if problems:
    raise OptionsError(problems)


def _extend_manifest(
  root: epath.Path, cells: Mapping[str, Any], seeds: int
) -> SweepManifest:
  """The manifest of these cells, with the seeds that the root has already.

  Raises:
    ValueError: the root has runs of other configs.
  """
  cells = json.loads(json.dumps(cells))
  found = SweepManifest([], {})
  if sweep_manifest.exists(root):
    found = sweep_manifest.read(root)
  changed = [
    name
    for name, cell in found.cells.items()
    if name not in cells or completed(cell["config"]) != cells[name]["config"]
  ]
  if changed:
    raise ValueError(
      f"root={root}: holds a sweep whose rows differ from those of this table: "
      f"{', '.join(changed[:3])}{', ...' if changed[3:] else ''}. Choose "
      "another --root, or the table that the sweep was started with."
    )
  return SweepManifest(list(range(max(seeds, len(found.seeds)))), cells)
