"""`bench solver`: gap and marginal error of the transport solvers over time."""

import argparse
import dataclasses
import json
from typing import Any

import jax
from absl import logging
from etils import epath

from vmoe_study.analysis import solver_bench
from vmoe_study.cli.table import markdown_table
from vmoe_study.routing.capacity import expert_capacity

HELP = "compare the transport solvers: gap and marginal error against time"
COLUMNS = {
  "problem": "{}",
  "solver": "{}",
  "iterations": "{}",
  "marginal_error": "{:.4f}",
  "gap": "{:.2e}",
  "ms": "{:.2f}",
}


@dataclasses.dataclass(frozen=True)
class _Shape:
  """What is solved: random logits of a given deviation."""

  groups: int = 1
  tokens: int = 1568
  experts: int = 32
  logit_std: float = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  helps = {
    "groups": "G, solved at once",
    "tokens": "S, per group",
    "experts": "E",
    "logit_std": "standard deviation of the router logits",
  }
  for field in dataclasses.fields(_Shape):
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
    help="of each solver",
  )
  parser.add_argument("--rounds", type=int, default=9, help="timings of each")
  parser.add_argument("--out", metavar="FILE", help="write the rows as JSON")
  parser.add_argument(
    "--figure", metavar="FILE.png", help="draw gap and error against time"
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  names = [field.name for field in dataclasses.fields(_Shape)]
  shape = _Shape(**{name: getattr(args, name) for name in names})
  rows: list[dict[str, Any]] = []
  for problem in _problems(shape, args.capacities):
    rows += solver_bench.measure(
      problem, args.iterations, args.rounds, logging.info
    )
  cells = [[fmt.format(row[k]) for k, fmt in COLUMNS.items()] for row in rows]
  print(markdown_table(list(COLUMNS), cells))
  if args.out:
    device = jax.devices()[0].device_kind
    record = {"shape": dataclasses.asdict(shape), "device": device}
    text = json.dumps(record | {"rows": rows}, indent=1)
    epath.Path(args.out).write_text(text + "\n")
  if args.figure:
    _draw(rows, args.figure)
  return 0


def _problems(shape: _Shape, capacities: list[float]):
  """Sparse transport at each capacity, and Sinkhorn's."""
  size = shape.groups, shape.tokens, shape.experts
  logits = shape.logit_std * jax.random.normal(jax.random.key(0), size)
  for capacity in capacities:
    slots = expert_capacity(shape.tokens, shape.experts, capacity)
    name = f"sparse transport, capacity {capacity:g}"
    yield solver_bench.sparse_problem(logits, slots, name)
  # It needs no more than 5 iterations for logits as wide as the others'.
  yield solver_bench.sinkhorn_problem(4 * logits, "Sinkhorn, logits x 4")


def _draw(rows: list[dict[str, Any]], path: str) -> None:
  """A column per problem: the gap above, the marginal error below."""
  import matplotlib as mpl

  mpl.use("Agg")
  from matplotlib import pyplot as plt
  from matplotlib import ticker

  problems = list(dict.fromkeys(row["problem"] for row in rows))
  measures = {
    "gap": "objective above the optimum, per token",
    "marginal_error": "mean error of the marginal",
  }
  figure, axes = plt.subplots(
    2, len(problems), figsize=(4.5 * len(problems), 7), squeeze=False
  )
  for column, problem in zip(axes.T, problems, strict=True):
    shown = [row for row in rows if row["problem"] == problem]
    for axis, (key, label) in zip(column, measures.items(), strict=True):
      for solver in dict.fromkeys(row["solver"] for row in shown):
        line = [row for row in shown if row["solver"] == solver]
        # What float32 cannot tell from the optimum is drawn at the bottom.
        values = [max(row[key], 1e-7) for row in line]
        axis.plot([row["ms"] for row in line], values, "o-", label=solver)
      axis.set(xscale="log", yscale="log", xlabel="milliseconds", ylabel=label)
      ticks = ticker.LogLocator(subs=(1, 2, 5))
      axis.xaxis.set_major_locator(ticks)
      axis.xaxis.set_major_formatter("{x:g}")
      axis.xaxis.set_minor_formatter(ticker.NullFormatter())
    column[0].set_title(problem)
    column[0].legend()
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  plt.close(figure)
