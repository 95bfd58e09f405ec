"""Trains the configs of a table for several seeds; skips finished runs.

A sweep can be stopped or killed at any time. Started again, it resumes the runs
that had begun and skips those that have finished.
"""

import argparse
import shlex

from absl import logging
from etils import epath

from vmoe_study.cli import paths
from vmoe_study.run.exit_codes import FAILED, PREEMPTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "table",
    metavar="FILE.py:TABLE",
    help="a file with TABLES of rows, and one of its tables, such as "
    "configs/tables.py:glyphs_grid; change any field of all its rows with "
    "--config.FIELD=VALUE",
  )
  parser.add_argument(
    "--root",
    type=paths.path,
    required=True,
    metavar="DIR",
    help="folder for all runs; a URL if --launcher starts them",
  )
  parser.add_argument(
    "--seeds",
    type=int,
    default=1,
    help="number of runs of each row, with seeds 0, 1, ...",
  )
  parser.add_argument(
    "--jobs",
    type=int,
    default=1,
    help="number of runs at a time, each on its share of the CPU cores",
  )
  parser.add_argument(
    "--only", default="", metavar="TEXT", help="only rows with TEXT in the name"
  )
  parser.add_argument(
    "--known",
    type=paths.path,
    nargs="+",
    default=[],
    metavar="DIR",
    help="results of earlier runs, as `report` reads them; runs of the same "
    "config and seed are not repeated",
  )
  parser.add_argument(
    "--launcher",
    type=shlex.split,
    metavar="COMMAND",
    help="start each missing run elsewhere with a script of launch/, such as "
    "'launch/gke.sh run --topology=v5e:4x4 --image=IMAGE', and stop",
  )
  parser.add_argument(
    "--dry-run", action="store_true", help="print the commands and stop"
  )


def check(args: argparse.Namespace) -> None:
  """Checks the table and the config of each of its rows."""
  from vmoe_study.study.sweep import make_cells
  from vmoe_study.study.table_file import load_table

  make_cells(load_table(args.table), args.overrides)


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  # Checking configs takes JAX, which `sweep --help` does not wait for.
  from vmoe_study.study import results
  from vmoe_study.study.sweep import Sweep
  from vmoe_study.study.table_file import load_table
  from vmoe_study.study.task_runner import LOG_FILE

  table = load_table(args.table)
  sweep = Sweep(table, args.root, args.seeds, args.overrides)
  missing = sweep.missing_runs(args.only, results.load(args.known))
  if args.dry_run:
    print("\n".join(shlex.join(task.command) for task in missing))
    return 0
  if args.launcher:
    sweep.launch(missing, args.launcher)
    return 0
  outcome = sweep.run(missing, args.jobs)
  if outcome.stopped:
    logging.warning("Stopped. Run again to resume.")
    return PREEMPTED
  for task in outcome.failed:
    log = task.workdir / LOG_FILE
    logging.error("FAILED: %s; see %s\n%s", task.label, log, _reason(log))
  if outcome.given_up:
    logging.error(
      "%d runs were not started, as the first %d failed. Run again to resume.",
      outcome.given_up,
      len(outcome.failed),
    )
  return FAILED if outcome.failed else 0


def _reason(log: epath.Path) -> str:
  """The last error in a run's log; if there is none, the last line of it."""
  text = "\n" + log.read_bytes().decode(errors="replace").strip()
  _, mark, error = text.rpartition("\nerror: ")
  return f"error: {error}" if mark else text.splitlines()[-1]
