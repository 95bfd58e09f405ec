"""The same images through the routers of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from vmoe_study.inspection.gallery import Gallery, make_gallery
from vmoe_study.inspection.images import EvaluationImages
from vmoe_study.run.checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
  from matplotlib.figure import Figure


def compare(
  checkpoints: Sequence[Checkpoint | epath.PathLike]
  | Mapping[str, Checkpoint | epath.PathLike],
  *,
  num_images: int = 6,
) -> Figure:
  """Draws the same images once per run, with patches coloured by expert.

  Shows the last routed layer of each run. Every run has its own experts: equal
  colours in two rows do not mean the same expert.

  Args:
    checkpoints: opened checkpoints or workdirs of runs; a mapping gives the
      labels of the rows, which are otherwise the names of the routers. All
      models must be routed and evaluated on the same images.
    num_images: number of images in the figure.

  Raises:
    ValueError: a run has no routed layer, or its images are not the same.

  >>> figure = compare(["runs/digits", "runs/digits"], num_images=2)
  >>> len(figure.axes)  # Two images, each alone and with two runs.
  6
  """
  from vmoe_study.drawing.fonts import fit_fonts
  from vmoe_study.inspection.pictures import comparison_picture

  labels = None
  if isinstance(checkpoints, Mapping):
    labels, checkpoints = list(checkpoints), list(checkpoints.values())
  galleries: list[tuple[str, Gallery]] = []
  for number, found in enumerate(checkpoints):
    if not isinstance(found, Checkpoint):
      found = open_checkpoint(found)
    images = EvaluationImages(found.model, found.unconfirmed, found.class_names)
    gallery = make_gallery(found.model, found.variables, images, num_images)
    _check(found, gallery, galleries)
    router = found.config.evaluation_moe.router
    galleries.append((labels[number] if labels else router, gallery))
  return fit_fonts(comparison_picture(galleries))


def _check(
  checkpoint: Checkpoint,
  gallery: Gallery,
  others: Sequence[tuple[str, Gallery]],
) -> None:
  if not gallery.layers:
    raise ValueError(
      f"workdir={checkpoint.path}: the model must have a routed layer. Compare "
      "runs with a router."
    )
  if others and not np.array_equal(
    others[0][1].images[: gallery.count], gallery.images[: gallery.count]
  ):
    raise ValueError(
      f"workdir={checkpoint.path}: its evaluation images are not those of the "
      "first run. Compare runs that are evaluated on the same data set with "
      "the same operations and group size."
    )
