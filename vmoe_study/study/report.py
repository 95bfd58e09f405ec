"""The report of a study: tables and figures in a folder."""

from collections.abc import Iterator, Mapping, Sequence

from etils import epath

from vmoe_study.drawing.render import csv_table, latex_table, markdown_table
from vmoe_study.study.planned import Analysis
from vmoe_study.study.results import RESULTS_FILE, Cell, write
from vmoe_study.study.settings import settings
from vmoe_study.study.tables import MISSING, Table, describe_seeds, tables
from vmoe_study.training.metrics_file import STOPPED_EARLY

REPORT_FILE = "report.md"
DOTS_PER_INCH = 120
TITLES = {
  "planned": "Planned contrasts, in percentage points",
  "accuracy": "Accuracy in percent",
  "cost": "Cost, and routing at the end of training",
  "comparisons": "Paired comparisons, in percentage points",
  "health": "Routing at the end of training, and speed",
}
# Sentences below a title, each for tables with all of some columns.
NOTES = {
  "planned": (
    (
      (),
      "Chosen before the runs. The model is cell + seed + error, with one "
      "error variance pooled over all cells; p: two-sided t-test; Holm: p "
      "after correction for all rows. `detectable`: the smallest true "
      "difference that is found in 80% of such studies at 0.05, divided by "
      "the number of rows. `by seed`: the same difference with the paired "
      "t-test over the seeds that both sides have, which needs no common "
      "error variance; its p is not corrected.",
    ),
    (
      ("margin", "p equivalent"),
      "`p equivalent`: of two one-sided tests that the difference is not "
      "within the margin.",
    ),
  ),
  "accuracy": (
    (("K",), "`K`: experts per token."),
    (("capacity",), "`capacity`: capacity factor."),
    (
      ("K", "capacity"),
      "There are K x capacity expert slots per token, with K = 1 where it is "
      "empty.",
    ),
    (("group",), "`group`: images per routing group."),
    (
      ("source",),
      "An empty cell in a `published` column means that no number with a "
      "source is known.",
    ),
  ),
  "cost": (
    ((), "FLOPs count matrix products only."),
    (
      (),
      "Seconds and images/s are medians over seeds and include compilation; "
      "runs that are executed at the same time share the machine.",
    ),
    (
      ("unprocessed tokens %",),
      "`unprocessed tokens` are not processed by any expert.",
    ),
    (
      ("max load", "min load"),
      "`max load` and `min load` are the numbers of tokens of the busiest and "
      "the least busy expert, divided by the mean over experts.",
    ),
    (
      ("max load", "min load", "unprocessed tokens %"),
      "All three are averages over layers, for the last training batch.",
    ),
  ),
  "comparisons": (
    (
      (),
      "The two sides are compared seed by seed, at equal cost (K x capacity) "
      "and with all other settings equal.",
    ),
    (
      ("p", "Holm"),
      "p: paired t-test. Holm: p after correction for all comparisons of the "
      "metric.",
    ),
  ),
}


def runs_table(cells: Sequence[Cell]) -> str:
  """A Markdown table with a row per run.

  Accuracies are percentages; seconds are those of training, without evaluation.
  """
  runs = [
    _summary(cell, seed, cell.runs.get(seed))
    for cell in cells
    for seed in cell.seeds
  ]
  measured = {name for run in runs for name in run if "/" in name}
  columns = ["run", "router", "seed", "steps", *sorted(measured)]
  columns += ["seconds", "parameters"]
  rows = [[run.get(name, "") for name in columns] for run in runs]
  return markdown_table(columns, rows)


def _summary(
  cell: Cell, seed: int, final: Mapping[str, float] | None
) -> dict[str, str]:
  name = cell.names.get(seed, cell.name)
  summary = {"run": name, "router": cell.router, "seed": str(seed)}
  if final is None:
    return summary | {"steps": MISSING}
  for name, value in final.items():
    if name.endswith(("/accuracy", "/10shot")):
      summary[name] = f"{100 * value:.2f}"
  summary["steps"] = str(final["step"])
  if STOPPED_EARLY in final:
    summary["steps"] += f" of {final['num_steps']:.0f} (stopped early)"
  summary["seconds"] = f"{final['seconds']:.0f}"
  summary["parameters"] = f"{final['parameters']:,.0f}"
  return summary


def write_report(
  out: epath.PathLike, cells: Sequence[Cell], analysis: Analysis | None = None
) -> None:
  """Writes tables, figures and the results from which they are made.

  Args:
    out: folder for tables as Markdown, CSV and LaTeX, figures as PNG and SVG,
      and `results.json`, which `results.load` reads.
    cells: cells from `results.load`.
    analysis: the contrasts planned before the runs, if there are any.
  """
  # Matplotlib takes a second to import, and `runs_table` does not need it.
  from vmoe_study.drawing.figure_files import save_figure
  from vmoe_study.study import figures

  out = epath.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  write(out / RESULTS_FILE, cells)
  found = tables(cells, analysis)
  for name, table in found.items():
    numbers = table.as_numbers()
    (out / f"{name}.csv").write_text(csv_table(numbers.header, numbers.rows))
    (out / f"{name}.tex").write_text(latex_table(table.header, table.as_text()))
  drawn = figures.figures(cells, analysis)
  for name, figure in drawn.items():
    save_figure(figure, out, name, DOTS_PER_INCH)
  (out / REPORT_FILE).write_text(_markdown(cells, found, list(drawn)))


def _markdown(
  cells: Sequence[Cell], found: Mapping[str, Table], drawn: Sequence[str]
) -> str:
  parts = []
  for name, table in found.items():
    parts += [f"## {TITLES[name]}", " ".join(_notes(name, table, cells))]
    parts.append(markdown_table(table.header, table.as_text()))
    if name in drawn:
      parts.append(f"![{TITLES[name]}]({name}.png)")
  parts += [
    f"![{TITLES[name]}]({name}.png)" for name in drawn if name not in found
  ]
  return "\n\n".join(parts) + "\n"


def _notes(name: str, table: Table, cells: Sequence[Cell]) -> Iterator[str]:
  """The sentences that apply to a table."""
  if name == "accuracy":
    yield f"{describe_seeds(cells)}."
  for columns, sentence in NOTES[name]:
    if {*columns} <= {*table.header}:
      yield sentence
  if name == "accuracy" and (common := settings(cells).common):
    shared = ", ".join(f"{key} {text}" for key, text in common.items())
    yield f"In all rows that have it: {shared}."
