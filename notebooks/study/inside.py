"""What the routers of a sweep learn, in numbers with intervals over seeds.

  python notebooks/study/inside.py ROOT --out=DIR

Inspects the last checkpoint of every finished run below ROOT, on the images of
its evaluation, and measures which experts the scripts of its few-shot data sets
use. Writes DIR/NAME/seedN.json for every run, which a second call does not
repeat, then DIR/inside.md and DIR/inside.csv.
"""

import argparse
import csv
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from vmoe_study import inspect, log_progress, open_checkpoint
from vmoe_study.drawing.render import markdown_table
from vmoe_study.evaluation.spec import EvaluationSpec
from vmoe_study.files.atomic import write_atomically
from vmoe_study.files.json_text import to_json
from vmoe_study.inspection.images import EvaluationImages
from vmoe_study.inspection.measure import (
  measure_images,
  measure_routing,
)
from vmoe_study.inspection.statistics import mutual_information
from vmoe_study.run.checkpoint import Checkpoint
from vmoe_study.run.experiment import Model
from vmoe_study.study import results
from vmoe_study.study.statistics import estimate

IMAGES = 2000
IMAGES_OF_SCRIPT = 360
CAPACITIES = (0.25, 0.5, 1.0, 2.0, 4.0)


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
    yield f"{where}: dispatch weight on content", 100 * content["dispatched"]
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


def summary(
  runs: Mapping[str, Mapping[int, Mapping[str, Any]]],
) -> list[dict[str, Any]]:
  """One row per quantity and cell: mean over seeds with its 95% interval."""
  rows = []
  for cell, seeds in runs.items():
    values: dict[str, list[float]] = {}
    for run in seeds.values():
      for name, value in quantities(run):
        values.setdefault(name, []).append(value)
    for name, found in values.items():
      mean = estimate(found)
      rows.append(
        {
          "quantity": name,
          "cell": cell,
          "mean": round(mean.mean, 4),
          "half_width": round(mean.half_width, 4),
          "seeds": mean.count,
        }
      )
  return rows


def table(rows: list[dict[str, Any]]) -> str:
  """The summary as Markdown: a row per quantity, a column per cell."""
  cells = list(dict.fromkeys(row["cell"] for row in rows))
  lines: dict[str, dict[str, str]] = {}
  for row in rows:
    text = f"{row['mean']:.4g}"
    if row["seeds"] > 1:
      text += f" ± {row['half_width']:.2g}"
    lines.setdefault(row["quantity"], {})[row["cell"]] = text
  texts = [
    [name, *(line.get(cell, "") for cell in cells)]
    for name, line in lines.items()
  ]
  return markdown_table(["", *cells], texts)


def main() -> None:
  """Inspects the runs of a sweep and writes the summary."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("root", type=pathlib.Path, help="folder of the sweep")
  parser.add_argument("--out", type=pathlib.Path, required=True)
  args = parser.parse_args()
  log_progress()
  runs: dict[str, dict[int, Any]] = {}
  for cell in results.load([str(args.root)]):
    for seed in cell.runs:
      file = args.out / cell.name / f"seed{seed}.json"
      if not file.exists():
        logging.info("%s seed %d", cell.name, seed)
        found = inspect_run(args.root / cell.name / f"seed{seed}")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(str(file), to_json(found))
      label = cell.router if cell.router == "dense" else cell.name
      runs.setdefault(label, {})[seed] = json.loads(file.read_text())
  rows = summary(runs)
  with (args.out / "inside.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
  (args.out / "inside.md").write_text(table(rows) + "\n")
  print(table(rows))


if __name__ == "__main__":
  main()
