"""Makes the models and images in this folder, and README's figure of them.

  python notebooks/models/make.py

Trains six small models in workdir/models, or resumes their training, then
replaces the folders here. Everything that depends on the data set is at the
top.
"""

import csv
import pathlib
import shutil

import numpy as np

from vmoe_study import (
  compare,
  load_config,
  log_progress,
  open_checkpoint,
  train,
)
from vmoe_study.data.classes import class_label
from vmoe_study.data.sources import open_source
from vmoe_study.data.spec import DataSpec
from vmoe_study.inspection.files import save_png
from vmoe_study.run.export import export_model

ROUTERS = (
  "softmax_token_choice",
  "sinkhorn_token_choice",
  "softmax_expert_choice",
  "sinkhorn_expert_choice",
  "sparsity_constrained_expert_choice",
  "soft",
)
CONFIG = "configs/digits.py:router="
OVERRIDES = (
  "model.fields.width=32",
  "model.fields.mlp_dim=64",
  "data.ops=rgb|value_range(-1, 1)",
  "evaluations.test.data.ops=rgb|value_range(-1, 1)",
  "fewshot={}",
)
NUM_IMAGES, NUM_SHOWN = 12, 8

HERE = pathlib.Path(__file__).resolve().parent
IMAGES = HERE / "images"
FIGURE = HERE.parent / "figures" / "routers.png"
WORKDIRS = HERE.parents[1] / "workdir" / "models"


def make_model(router: str) -> None:
  """Trains a model and exports it."""
  workdir, folder = WORKDIRS / router, HERE / router
  train(load_config(CONFIG + router, OVERRIDES), workdir)
  shutil.rmtree(folder, ignore_errors=True)
  export_model(open_checkpoint(workdir), str(folder))


def write_images(spec: DataSpec) -> None:
  """Writes a few images, and test.csv, which lists them for image_csv.

  The classes of the images are spread evenly over those of the data set.
  """
  source = open_source(spec)
  unused = list(range(len(source)))
  labels = source.labels()
  shutil.rmtree(IMAGES, ignore_errors=True)
  IMAGES.mkdir()
  with (IMAGES / "test.csv").open("w", newline="") as file:
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["image", "label"])
    for place in range(NUM_IMAGES):
      label = place * spec.num_classes // NUM_IMAGES
      number = next(n for n in unused if labels[n] == label)
      unused.remove(number)
      name = f"{place:02d}.png"
      (IMAGES / name).write_bytes(_as_png(source[number]["image"]))
      rows.writerow([name, class_label(source.class_names, label)])


def _as_png(image: bytes | np.ndarray) -> bytes:
  import cv2

  return image if isinstance(image, bytes) else cv2.imencode(".png", image)[1]


def write_figure() -> None:
  """Draws the images with their patches by expert, for every router."""
  data = {"name": "image_csv", "data_dir": IMAGES, "split": "test"}
  changes = [f"evaluations.test.data.{key}={data[key]}" for key in data]
  models = [open_checkpoint(HERE / name, overrides=changes) for name in ROUTERS]
  save_png(compare(models, num_images=NUM_SHOWN), FIGURE)


def main() -> None:
  """Makes the models, the images and the figure."""
  log_progress()
  for router in ROUTERS:
    make_model(router)
  config = load_config(CONFIG + ROUTERS[0], OVERRIDES)
  write_images(config.evaluations["test"].data)
  write_figure()


if __name__ == "__main__":
  main()
