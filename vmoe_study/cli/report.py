"""Tabulates runs; with --out writes tables and figures of a study.

Runs whose configs differ by the seed alone make one row, with the mean over
seeds and its 95% interval. What a sweep has not run yet is shown as missing.
"""

import argparse
from collections.abc import Sequence

from absl import logging
from etils import epath

from vmoe_study.study import results
from vmoe_study.study.render import csv_table, latex_table, markdown_table
from vmoe_study.study.tables import MISSING, Table, tables

REPORT_FILE = "report.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "paths",
    nargs="+",
    metavar="DIR",
    help="of a run, the --root of a sweep, or what an earlier report wrote",
  )
  parser.add_argument(
    "--out",
    metavar="DIR",
    help="write tables (Markdown, CSV, LaTeX), figures (PNG, SVG) and the "
    "results themselves (JSON) there",
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  cells = results.load(args.paths)
  if not args.out:
    print(table(cells))
    return 0
  out = epath.Path(args.out)
  out.mkdir(parents=True, exist_ok=True)
  write_report(out, cells)
  print((out / REPORT_FILE).read_text())
  logging.info("Wrote %s", out)
  return 0


def table(cells: Sequence[results.Cell]) -> str:
  """A Markdown table with a row per run; what a run lacks stays empty.

  Accuracies are percentages; seconds are those of training alone.
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


def _summary(cell, seed: int, final) -> dict[str, str]:
  name = cell.names.get(seed, cell.name)
  summary = {"run": name, "router": cell.router, "seed": str(seed)}
  if final is None:
    return summary | {"steps": MISSING}
  for name, value in final.items():
    if name.endswith(("/accuracy", "/10shot")):
      summary[name] = f"{100 * value:.2f}"
  summary["steps"] = str(final["step"])
  summary["seconds"] = f"{final['seconds']:.0f}"
  summary["parameters"] = f"{final['parameters']:,.0f}"
  return summary


def write_report(out: epath.Path, cells: Sequence[results.Cell]) -> None:
  """Writes all tables and figures, and the results that they are made of."""
  # Matplotlib takes a second to import; `train` prints a table without it.
  from vmoe_study.study import figures

  results.write(out / results.RESULTS_FILE, cells)
  found = tables(cells)
  for name, each in found.items():
    numbers = each.as_numbers()
    (out / f"{name}.csv").write_text(csv_table(numbers.header, numbers.rows))
    (out / f"{name}.tex").write_text(latex_table(each.header, each.as_text()))
  drawn = figures.figures(cells)
  for name, figure in drawn.items():
    figures.save(figure, out, name)
  (out / REPORT_FILE).write_text(_markdown(found, list(drawn)))


TITLES = {
  "accuracy": "Accuracy: percent, mean over seeds and its 95% interval",
  "cost": "Cost, and routing at the end of training",
  "comparisons": "Paired comparisons over seeds: percentage points",
  "health": "Routing at the end of training, and speed",
}
NOTES = {
  "accuracy": "`K`: experts per token. `capacity`: slots per choice of a "
  "token, K x capacity per token. `group`: images routed together. An empty "
  "cell of a column `published` has no number with a source.",
  "cost": "FLOPs are those of matrix products. Seconds and images/s are "
  "medians over seeds, compilation included; runs beside each other share the "
  "machine. "
  "`unprocessed tokens` have no expert at all; `max load` and `min load` are "
  "the tokens that the busiest and the least busy expert serve, over the mean, "
  "averaged over layers, of the last training batch.",
  "comparisons": "Sides are compared at equal cost (K x capacity) and equal "
  "other settings, seed by seed. p: paired t-test; Holm: corrected for all "
  "comparisons of the metric.",
}


def _markdown(found: dict[str, Table], drawn: Sequence[str]) -> str:
  parts = []
  for name, each in found.items():
    parts += [f"## {TITLES[name]}", NOTES[name]]
    parts.append(markdown_table(each.header, each.as_text()))
    if name in drawn:
      parts.append(f"![{TITLES[name]}]({name}.png)")
  parts += [
    f"![{TITLES[name]}]({name}.png)" for name in drawn if name not in found
  ]
  return "\n\n".join(parts) + "\n"
