"""`bench solver`: gap and marginal error of the transport solvers over time."""

import argparse
import dataclasses
import json
from typing import Any

import jax
from absl import logging
from etils import epath

from vmoe_study.performance import solver_bench
from vmoe_study.routing.capacity import expert_capacity
from vmoe_study.study.render import markdown_table

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
    draw(rows, args.figure)
  return 0


def _problems(shape: _Shape, capacities: list[float]):
  """Sparse transport at each capacity, and Sinkhorn's."""
  size = shape.groups, shape.tokens, shape.experts
  std = shape.logit_std
  logits = std * jax.random.normal(jax.random.key(0), size)
  width = "logits of standard deviation"
  for capacity in capacities:
    slots = expert_capacity(shape.tokens, shape.experts, capacity)
    name = f"sparse transport at capacity {capacity:g}, {width} {std:g}"
    yield solver_bench.sparse_problem(logits, slots, name)
  # It needs no more than 5 iterations for logits as wide as the others'.
  name = f"entropic transport (Sinkhorn), {width} {4 * std:g}"
  yield solver_bench.sinkhorn_problem(4 * logits, name)


# What lies below is rounding: float32 cannot tell it from the optimum.
ROUNDING = 2e-6


def draw(rows: list[dict[str, Any]], path: str) -> None:
  """Gap and marginal error against time, a column per problem.

  Args:
    rows: as under "rows" in what --out writes.
    path: of the picture.
  """
  import matplotlib as mpl

  mpl.use("Agg")
  from matplotlib import pyplot as plt

  problems = list(dict.fromkeys(row["problem"] for row in rows))
  measures = {
    "gap": "objective above the optimum, per token",
    "marginal_error": "mean error of the marginal",
  }
  figure, axes = plt.subplots(
    2,
    len(problems),
    figsize=(3.8 * len(problems), 7.5),
    sharex="col",
    squeeze=False,
    layout="constrained",
  )
  for column, problem in zip(axes.T, problems, strict=True):
    shown = [row for row in rows if row["problem"] == problem]
    for axis, (key, label) in zip(column, measures.items(), strict=True):
      _draw_panel(axis, shown, key)
      axis.set_ylabel(label)
    column[0].set_title(problem.replace(", ", ",\n"), fontsize="medium")
    column[0].legend(fontsize="small")
  figure.supxlabel("milliseconds; the numbers at the points are iterations")
  figure.savefig(path, dpi=120)
  plt.close(figure)


def _draw_panel(axis, rows: list[dict[str, Any]], key: str) -> None:
  from matplotlib import ticker

  solvers = dict.fromkeys(row["solver"] for row in rows)
  for number, solver in enumerate(solvers):
    line = [row for row in rows if row["solver"] == solver]
    values = [max(row[key], ROUNDING / 2) for row in line]
    [drawn] = axis.plot([row["ms"] for row in line], values, "o-", label=solver)
    above = number % 2 == 0  # So that the numbers of two lines do not meet.
    for row, value in zip(line, values, strict=True):
      axis.annotate(
        row["iterations"],
        (row["ms"], value),
        xytext=(4, 4) if above else (-4, -4),
        ha="left" if above else "right",
        va="bottom" if above else "top",
        textcoords="offset points",
        fontsize="x-small",
        color=drawn.get_color(),
      )
  axis.set(xscale="log", yscale="log")
  axis.margins(0.12)
  if axis.get_ylim()[0] < ROUNDING:
    axis.set_ylim(bottom=ROUNDING / 4)
    axis.axhspan(0, ROUNDING, color="0.9", zorder=0)
    axis.text(
      0.98,
      1.1 * ROUNDING,
      "float32 rounding",
      ha="right",
      fontsize="x-small",
      transform=axis.get_yaxis_transform(),
    )
  axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axis.xaxis.set_major_formatter("{x:g}")
  axis.xaxis.set_minor_formatter(ticker.NullFormatter())
  axis.grid(alpha=0.3)
