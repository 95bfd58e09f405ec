"""Pictures of a user's images that show which expert processes which patch."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from vmoe_study.inspection.files import save_png
from vmoe_study.inspection.gallery import gallery_of
from vmoe_study.inspection.measure import layer_names, measure_layer_routing
from vmoe_study.inspection.pictures import patches_picture
from vmoe_study.run.experiment import Model

MAX_TITLE = 40  # Characters.


class Explainer:
  """Writes a picture of each image: its patches, coloured by expert."""

  def __init__(self, model: Model, variables: Any, folder: epath.PathLike):
    """Creates the folder.

    Raises:
      ValueError: the model has no routed layer.
    """
    if not layer_names(model.evaluation_module):
      raise ValueError(
        "explain: the model must have a routed layer, whose experts are shown. "
        "Leave this option out, or take a model with a router."
      )
    self._model, self._variables = model, variables
    self._measure = measure_layer_routing(model.evaluation_module)
    self._folder = epath.Path(folder)
    self._folder.mkdir(parents=True, exist_ok=True)
    self._count = 0

  def write(self, images: jax.Array, names: Sequence[str]) -> None:
    """Writes NUMBER_NAME.png for each image, numbered from 1.

    Args:
      images: whole groups, float32 (B, H, W, C), on the devices.
      names: paths or URLs of the images; further images are padding.
    """
    routing = self._measure(self._variables, images)
    titles = [_title(name) for name in names]
    gallery = gallery_of(self._model, routing, images, titles)
    for number, title in enumerate(titles):
      self._count += 1
      file = self._folder / f"{self._count:05d}_{title}.png"
      save_png(patches_picture(gallery.only(number)), file)


def _title(name: str) -> str:
  """A short name of an image, for files and for Matplotlib."""
  stem = pathlib.PurePosixPath(name).stem
  return re.sub(r"[^\w.-]+", "_", stem)[:MAX_TITLE]
