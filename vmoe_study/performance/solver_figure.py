"""Figure of the solver benchmark: gap and marginal error against time."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = Mapping[str, Any]
# Values below it are float32 rounding errors.
ROUNDING = 2e-6


def draw(rows: Sequence[Row], path: str) -> None:
  """Draws gap and marginal error against time, one column per problem.

  Args:
    rows: the "rows" of `bench_solvers`.
    path: file of the picture.
  """
  problems = list(dict.fromkeys(row["problem"] for row in rows))
  measures = {
    "gap": "objective per token, above the optimum",
    "marginal_error": "mean marginal error",
  }
  size = 3.8 * len(problems), 7.5
  figure = Figure(figsize=size, layout="constrained")
  axes = figure.subplots(2, len(problems), sharex="col", squeeze=False)
  for column, problem in zip(axes.T, problems, strict=True):
    shown = [row for row in rows if row["problem"] == problem]
    for axis, (key, label) in zip(column, measures.items(), strict=True):
      _draw_panel(axis, shown, key)
      axis.set_ylabel(label)
    column[0].set_title(problem.replace(", ", ",\n"), fontsize="medium")
    column[0].legend(fontsize="small")
  figure.supxlabel("time in milliseconds; points are labelled with iterations")
  figure.savefig(path, dpi=120)


def _draw_panel(axis: Axes, rows: Sequence[Row], key: str) -> None:
  solvers = dict.fromkeys(row["solver"] for row in rows)
  for number, solver in enumerate(solvers):
    line = [row for row in rows if row["solver"] == solver]
    # Labels on different sides keep those of two lines apart.
    _draw_line(axis, line, key, solver, labels_above=number % 2 == 0)
  axis.set(xscale="log", yscale="log")
  axis.margins(0.12)
  if axis.get_ylim()[0] < ROUNDING:
    _mark_rounding(axis)
  axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axis.xaxis.set_major_formatter("{x:g}")
  axis.xaxis.set_minor_formatter(ticker.NullFormatter())
  axis.grid(alpha=0.3)


def _draw_line(
  axis: Axes, rows: Sequence[Row], key: str, solver: str, labels_above: bool
) -> None:
  """One solver's values against time, with iteration counts at the points."""
  times = [row["ms"] for row in rows]
  values = [max(row[key], ROUNDING / 2) for row in rows]
  [drawn] = axis.plot(times, values, "o-", label=solver)
  for row, time, value in zip(rows, times, values, strict=True):
    axis.annotate(
      row["iterations"],
      (time, value),
      xytext=(4, 4) if labels_above else (-4, -4),
      ha="left" if labels_above else "right",
      va="bottom" if labels_above else "top",
      textcoords="offset points",
      fontsize="x-small",
      color=drawn.get_color(),
    )


def _mark_rounding(axis: Axes) -> None:
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
