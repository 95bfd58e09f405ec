"""Pictures and distributions of the routing while a run trains."""

from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vmoe_study.data.classes import ClassNames
from vmoe_study.inspection.gallery import gallery_of, images_to_show
from vmoe_study.inspection.images import EvaluationImages
from vmoe_study.inspection.measure import measure_layer_routing
from vmoe_study.inspection.pictures import patches_picture
from vmoe_study.run.experiment import Model
from vmoe_study.training.metrics import MetricsWriter


class RoutingPictures:
  """Draws the same images, with patches by expert, at every evaluation.

  An observer of `run.train.train`.
  """

  def __init__(
    self, model: Model, class_names: ClassNames | None, num_images: int = 4
  ):
    """Reads images of the first evaluation.

    Args:
      model: model of the run.
      class_names: class names of the run.
      num_images: number of images to draw.

    Raises:
      ValueError: there is no evaluation or no routed block, or the run has
        several processes.
    """
    if not model.config.model.is_routed or jax.process_count() > 1:
      raise ValueError(
        f"pictures={num_images}: need a routed model and a run in one process. "
        "Leave --pictures out."
      )
    self._model = model
    images = EvaluationImages(model, {}, class_names)
    self._images, self._titles = images_to_show(images, num_images)
    self._measure = measure_layer_routing(model.evaluation_module)

  def observe(self, step: int, variables: Any, writer: MetricsWriter) -> None:
    """Writes "routing/patches", and "routing/LAYER/combine_weights".

    The weights are the nonzero ones of the tokens in these images.
    """
    routing = self._measure(variables, self._images)
    gallery = gallery_of(self._model, routing, self._images, self._titles)
    picture = _pixels(patches_picture(gallery))
    writer.write_images(step, {"routing/patches": picture})
    weights = {
      f"routing/{name}/combine_weights": layer.tokens.combined
      for name, layer in gallery.layers.items()
    }
    writer.write_histograms(
      step, {name: w[w > 0] for name, w in weights.items()}
    )


def _pixels(figure: Figure) -> np.ndarray:
  """The figure as a uint8 image (H, W, 3)."""
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3].copy()
