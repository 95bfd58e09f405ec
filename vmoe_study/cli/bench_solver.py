"""`bench solver`: gap and marginal error of the transport solvers over time."""

import argparse
import dataclasses

from vmoe_study.cli import paths
from vmoe_study.performance.bench_shapes import SolverShape

HELP = "compare the transport solvers: gap and marginal error against time"
COLUMNS = {
  "problem": "{}",
  "solver": "{}",
  "iterations": "{}",
  "marginal_error": "{:.4f}",
  "gap": "{:.2e}",
  "ms": "{:.2f}",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  helps = {
    "groups": "G, groups solved at once",
    "tokens": "S, tokens per group",
    "experts": "E, number of experts",
    "logit_std": "standard deviation of the router logits",
  }
  for field in dataclasses.fields(SolverShape):
    parser.add_argument(
      "--" + field.name.replace("_", "-"),
      type=field.type,
      default=field.default,
      help=helps[field.name],
    )
  parser.add_argument(
    "--capacities",
    nargs="+",
    type=float,
    default=[1.0, 2.0],
    help="capacity factors of the sparse transport",
  )
  parser.add_argument(
    "--iterations",
    nargs="+",
    type=int,
    default=[5, 10, 20, 40, 80],
    help="iteration counts of each solver",
  )
  parser.add_argument(
    "--rounds", type=int, default=9, help="number of timings of each"
  )
  parser.add_argument(
    "--out", type=paths.path, metavar="FILE", help="write the rows as JSON"
  )
  parser.add_argument(
    "--figure", metavar="FILE.png", help="draw gap and error against time"
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  import json

  from absl import logging
  from etils import epath

  from vmoe_study.drawing.render import markdown_table
  from vmoe_study.performance.solver_bench import bench_solvers

  names = [field.name for field in dataclasses.fields(SolverShape)]
  result = bench_solvers(
    SolverShape(**{name: getattr(args, name) for name in names}),
    args.capacities,
    args.iterations,
    args.rounds,
    logging.info,
  )
  rows = result["rows"]
  cells = [[fmt.format(row[k]) for k, fmt in COLUMNS.items()] for row in rows]
  print(markdown_table(list(COLUMNS), cells))
  if args.out:
    epath.Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
  if args.figure:
    from vmoe_study.performance.solver_figure import draw

    draw(rows, args.figure)
  return 0
