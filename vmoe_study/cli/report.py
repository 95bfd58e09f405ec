"""Tabulates runs; with --out writes the tables and figures of a study.

Runs whose configs differ only in the seed form one row, with the mean over the
seeds and its 95% interval. Runs that a sweep has not finished are shown as
missing.
"""

import argparse

from absl import logging
from etils import epath

from vmoe_study.cli import paths
from vmoe_study.study import report, results
from vmoe_study.study.planned import Analysis


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "paths",
    type=paths.path,
    nargs="+",
    metavar="DIR",
    help="the workdir of a run, the --root of a sweep, or the --out of an "
    "earlier report",
  )
  parser.add_argument(
    "--out",
    type=paths.path,
    metavar="DIR",
    help="write tables (Markdown, CSV, LaTeX), figures (PNG, SVG) and the "
    "results themselves (JSON) to this folder",
  )
  parser.add_argument(
    "--planned",
    metavar="FILE.py:TABLE",
    help="with --out: also test the contrasts that this table of configs "
    "planned, such as configs/tables.py:glyphs",
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  cells = results.load(args.paths)
  if args.planned and not args.out:
    raise ValueError(
      f"planned={args.planned}: is a part of the report. Add --out=DIR."
    )
  if not args.out:
    print(report.runs_table(cells))
    return 0
  report.write_report(args.out, cells, _analysis(args.planned))
  print((epath.Path(args.out) / report.REPORT_FILE).read_text())
  logging.info("Wrote %s", args.out)
  return 0


def _analysis(planned: str | None) -> Analysis | None:
  """Loads the table of `--planned`. Only this report has to import JAX."""
  if not planned:
    return None
  from vmoe_study.study.table_file import load_analysis

  return load_analysis(planned)
