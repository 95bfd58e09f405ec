"""What the routers of a sweep learn, in numbers with intervals over seeds.

  python notebooks/study/inside.py ROOT --out=DIR --only=TEXT

Inspects the last checkpoint of the finished runs below ROOT, on the images of
their evaluation, and measures which experts the scripts of the few-shot data
sets use. Writes the numbers of every run to DIR/inside.csv, then the table
DIR/inside.md and the figure DIR/inside.png, with means over seeds. Runs that
DIR/inside.csv has are not inspected again, so that

  python notebooks/study/inside.py DIR --out=DIR

makes table and figure again from DIR/inside.csv and DIR/results.json.
"""

import argparse
import csv
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from matplotlib.figure import Figure

from vmoe_study import inspect, log_progress, open_checkpoint
from vmoe_study.drawing.figure_files import save_figure
from vmoe_study.drawing.render import csv_table, markdown_table
from vmoe_study.evaluation.spec import EvaluationSpec
from vmoe_study.files.atomic import write_atomically
from vmoe_study.inspection.images import EvaluationImages
from vmoe_study.inspection.measure import (
  measure_images,
  measure_routing,
)
from vmoe_study.inspection.statistics import mutual_information
from vmoe_study.run.checkpoint import Checkpoint
from vmoe_study.run.experiment import Model
from vmoe_study.study import results
from vmoe_study.study.figures import row_panels
from vmoe_study.study.results import Cell
from vmoe_study.study.statistics import Estimate, estimate
from vmoe_study.study.styles import half_width, handle, labels
from vmoe_study.study.tables import by_family

IMAGES = 2000
IMAGES_OF_SCRIPT = 360
CAPACITIES = (0.25, 0.5, 1.0, 2.0, 4.0)
# By label of the axis: what is drawn, by its name in the legend.
PANELS = {
  "dispatch weight on content\nbeyond its area (points)": {
    f"layer {layer}": f"layer {layer}: dispatch weight beyond area"
    for layer in (1, 2)
  },
  "patches without any expert\nin layer 2 (%)": {
    kind: f"layer 2: unprocessed {kind}" for kind in ("content", "background")
  },
  "accuracy lost without\nthe experts of a layer (points)": {
    f"layer {layer}": f"layer {layer}: lost without any expert"
    for layer in (1, 2)
  },
  "change of accuracy at\nanother capacity (points)": {
    f"{factor:g}": f"change of accuracy at capacity {factor:g}"
    for factor in (0.5, 2.0)
  },
}
MARKERS, COLOURS = "os", ("#0072B2", "#D55E00")
STYLE = {"capsize": 2, "markersize": 4, "lw": 1.0}


def inspect_run(workdir: pathlib.Path) -> dict[str, Any]:
  """The measurements of one run."""
  checkpoint = open_checkpoint(workdir)
  found = inspect(
    checkpoint, num_images=IMAGES, capacity_factors=CAPACITIES
  ).to_dict()
  return {**found, "scripts": expert_use_by_script(checkpoint)}


def expert_use_by_script(checkpoint: Checkpoint) -> dict[str, Any]:
  """Shares of the combine weight by layer, data set and expert."""
  found: dict[str, Any] = {}
  config = checkpoint.config
  tests = {name: spec.data for name, spec in config.evaluations.items()}
  tests |= {name: task.test for name, task in config.fewshot.items()}
  for name, data in tests.items():
    evaluations = {name: EvaluationSpec(data, IMAGES_OF_SCRIPT)}
    model = Model(
      dataclasses.replace(config, evaluations=evaluations),
      checkpoint.model.image_shape,
      checkpoint.model.mesh,
    )
    images = EvaluationImages(model, {})
    measured = measure_images(
      {
        "weights": measure_routing(
          model.evaluation_module, lambda tokens, _: tokens.combined.sum(axis=1)
        )
      },
      checkpoint.variables,
      images.batches(IMAGES_OF_SCRIPT),
      images.to_devices,
    )
    for layer, weights_NE in measured["weights"].items():
      weight_E = weights_NE.sum(axis=0)
      found.setdefault(layer, {})[name] = (weight_E / weight_E.sum()).tolist()
  return found


def quantities(run: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  """The numbers of a run, by name; shares and accuracies in percent."""
  yield "accuracy", 100 * run["accuracy"]["mean"]
  for point in run["capacities"]:
    name = f"change of accuracy at capacity {point['factor']:g}"
    yield name, 100 * point["change"]["mean"]
  for number, (layer, found) in enumerate(run["layers"].items(), 1):
    content, where = found["content"], f"layer {number}"
    yield f"{where}: patches with content", 100 * content["patches"]
    dispatched = 100 * content["dispatched"]
    yield f"{where}: dispatch weight on content", dispatched
    beyond = dispatched - 100 * content["patches"]
    yield f"{where}: dispatch weight beyond area", beyond
    for kind in ("content", "background"):
      share = content[f"unprocessed_{kind}"]
      if share is not None:
        yield f"{where}: unprocessed {kind}", 100 * share
    drops = [drop["mean"] for drop in found["accuracy_drop"]]
    yield f"{where}: lost without one expert, mean", 100 * np.mean(drops)
    yield f"{where}: lost without one expert, most", 100 * np.max(drops)
    without = found["accuracy_drop_all"]["mean"]
    yield f"{where}: lost without any expert", 100 * without
    yield f"{where}: class and expert, nats", found["mutual_information"]
    chance = found["shuffled_information"]
    yield f"{where}: the same by chance, nats", chance
    shares = np.array(list(run["scripts"][layer].values()))
    yield f"{where}: script and expert, nats", mutual_information(shares)


Values = dict[tuple[str, int], dict[str, float]]  # By cell and seed.


def read_values(file: pathlib.Path) -> Values:
  """The numbers by cell and seed that `write_values` has written, if any."""
  values: Values = {}
  if file.exists():
    for row in csv.DictReader(file.read_text().splitlines()):
      run = values.setdefault((row["cell"], int(row["seed"])), {})
      run[row["quantity"]] = float(row["value"])
  return values


def write_values(file: pathlib.Path, values: Values) -> None:
  """Writes one row per cell, seed and quantity."""
  rows = [
    [cell, seed, name, f"{value:.6g}"]
    for (cell, seed), run in sorted(values.items())
    for name, value in run.items()
  ]
  text = csv_table(["cell", "seed", "quantity", "value"], rows)
  write_atomically(str(file), text)


def over_seeds(cell: Cell, values: Values) -> dict[str, Estimate]:
  """Mean and 95% interval over seeds of each quantity of a cell."""
  found: dict[str, list[float]] = {}
  for (name, _), run in sorted(values.items()):
    if name == cell.name:
      for quantity, value in run.items():
        found.setdefault(quantity, []).append(value)
  return {quantity: estimate(values) for quantity, values in found.items()}


def table(cells: Sequence[Cell], values: Values) -> str:
  """A Markdown table with a row per quantity and a column per cell."""
  columns = [over_seeds(cell, values) for cell in cells]
  names = dict.fromkeys(name for column in columns for name in column)
  rows = [
    [name, *(_text(column.get(name)) for column in columns)] for name in names
  ]
  return markdown_table(["", *labels(cells)], rows)


def _text(found: Estimate | None) -> str:
  if found is None:
    return ""
  text = f"{found.mean:.4g}"
  return text + (f" ± {found.half_width:.2g}" if found.count > 1 else "")


def figure(cells: Sequence[Cell], values: Values) -> Figure:
  """The quantities of `PANELS` with 95% intervals, with a row per cell."""
  cells = [cell for cell in cells if cell.router != "dense"]
  drawn, panels = row_panels(cells, len(PANELS), 0.7)
  for panel, (title, quantities_) in zip(panels, PANELS.items(), strict=True):
    for row, cell in enumerate(cells):
      found = over_seeds(cell, values)
      for place, quantity in enumerate(quantities_.values()):
        if quantity in found:
          panel.errorbar(
            found[quantity].mean,
            row + 0.3 * (place - 0.5),
            xerr=half_width(found[quantity]),
            fmt=MARKERS[place],
            color=COLOURS[place],
            **STYLE,
          )
    panel.set_xlabel(title)
    panel.axvline(0, color="black", lw=0.6)
    panel.grid(axis="x", alpha=0.3)
    handles = [
      handle(name, marker=MARKERS[place], color=COLOURS[place])
      for place, name in enumerate(quantities_)
    ]
    panel.legend(handles=handles, fontsize="small")
  return drawn


def inspect_missing(
  root: pathlib.Path, cells: Sequence[Cell], file: pathlib.Path
) -> Values:
  """Inspects the runs that a file of values lacks, and adds them to it."""
  values = read_values(file)
  for cell in cells:
    for seed in cell.runs:
      workdir = root / cell.name / f"seed{seed}"
      if (cell.name, seed) not in values and workdir.exists():
        logging.info("%s seed %d", cell.name, seed)
        values[cell.name, seed] = dict(quantities(inspect_run(workdir)))
        write_values(file, values)
  return values


def main() -> None:
  """Inspects the runs of a sweep and writes table and figure."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("root", type=pathlib.Path, help="folder of the sweep")
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument(
    "--only", nargs="+", default=[""], help="rows whose name has one of these"
  )
  args = parser.parse_args()
  log_progress()
  args.out.mkdir(parents=True, exist_ok=True)
  found = [
    cell
    for cell in by_family(results.load([str(args.root)]))
    if any(text in cell.name for text in args.only)
  ]
  values = inspect_missing(args.root, found, args.out / "inside.csv")
  inspected = {name for name, _ in values}
  cells = [cell for cell in found if cell.name in inspected]
  (args.out / "inside.md").write_text(table(cells, values) + "\n")
  save_figure(figure(cells, values), args.out, "inside")


if __name__ == "__main__":
  main()
