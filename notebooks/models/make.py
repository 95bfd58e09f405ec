"""Takes models of the study into this folder; makes README's figure of them.

  python notebooks/models/make.py ROOT

ROOT is a sweep of `configs/tables.py:glyphs_grid`. Of every router the first
row, which is at cost 1, is taken, and its model of seed 0.
"""

import csv
import dataclasses
import pathlib
import shutil
import sys

from vmoe_study import compare, load_config, log_progress, open_checkpoint
from vmoe_study.data.classes import class_label
from vmoe_study.data.sources import open_source
from vmoe_study.data.spec import DataSpec
from vmoe_study.inspection.files import save_png
from vmoe_study.run.export import export_model
from vmoe_study.study import results
from vmoe_study.study.sweep_manifest import run_folder

ROUTERS = (
  "softmax_token_choice",
  "sinkhorn_token_choice",
  "softmax_expert_choice",
  "sinkhorn_expert_choice",
  "sparsity_constrained_expert_choice",
  "soft",
)
TEST = "configs/glyphs.py:router=dense"  # Its test images are shown.
NUM_IMAGES, NUM_SHOWN = 16, 8  # Two groups of eight, and one of them.

HERE = pathlib.Path(__file__).resolve().parent
IMAGES = HERE / "images"
FIGURE = HERE.parent / "figures" / "routers.png"


def export_first(root: str, router: str) -> None:
  """Exports the model of a router, without its few-shot evaluations."""
  cells = results.load([root])
  first = next(cell for cell in cells if cell.router == router)
  folder = HERE / router
  shutil.rmtree(folder, ignore_errors=True)
  workdir = run_folder(root, first.name, 0)
  found = open_checkpoint(workdir, overrides=["fewshot={}"])
  metadata = dataclasses.replace(found.metadata, config=found.config.to_dict())
  checkpoint = dataclasses.replace(found, metadata=metadata)
  export_model(checkpoint, str(folder), half=True)


def write_images(spec: DataSpec) -> None:
  """Writes a few images, and test.csv, which lists them for image_csv.

  Their classes are spread evenly over those of the data set, and they take
  turns in the designs.
  """
  source = open_source(spec)
  labels = source.labels()
  shutil.rmtree(IMAGES, ignore_errors=True)
  IMAGES.mkdir()
  with (IMAGES / "test.csv").open("w", newline="") as file:
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["image", "label"])
    for place in range(NUM_IMAGES):
      label = place * spec.num_classes // NUM_IMAGES
      designs = (labels == label).nonzero()[0]
      number = int(designs[place % len(designs)])
      name = f"{place:02d}.png"
      (IMAGES / name).write_bytes(source[number]["image"])
      rows.writerow([name, class_label(source.class_names, label)])


def write_figure() -> None:
  """Draws the images with their patches by expert, for every router."""
  data = {"name": "image_csv", "data_dir": IMAGES, "split": "test"}
  changes = [f"evaluations.test.data.{key}={data[key]}" for key in data]
  models = [open_checkpoint(HERE / name, overrides=changes) for name in ROUTERS]
  save_png(compare(models, num_images=NUM_SHOWN), FIGURE)


def main(root: str) -> None:
  """Makes the models, the images and the figure."""
  log_progress()
  for router in ROUTERS:
    export_first(root, router)
  write_images(load_config(TEST).evaluations["test"].data)
  write_figure()


if __name__ == "__main__":
  main(*sys.argv[1:])
