"""The result of an inspection: measurements and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vmoe_study.inspection.gallery import Gallery
from vmoe_study.inspection.statistics import (
  CapacityPoint,
  LayerStatistics,
  jsonable,
)
from vmoe_study.study.statistics import Estimate

if TYPE_CHECKING:
  from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Inspection:
  """Measurements of the routers of a checkpoint on images.

  Attributes:
    name: name of the run.
    router: name of the router in `ROUTERS`, or "dense".
    step: step of the checkpoint.
    data: name of the evaluation that provides the images.
    class_names: names of the T classes.
    num_images: number of images measured.
    tokens_per_image: L, including a class token.
    group_images: images per routing group.
    trained_capacity: capacity factor in training; None for a dense model.
    capacity_factor: capacity factor in this inspection; None for a dense model.
    slots_per_expert: C; 0 for a dense model.
    accuracy: accuracy on these images, with its 95% interval.
    layers: statistics of each routed layer, by name and in order.
    capacities: accuracy with other capacity factors; empty unless the router
      is sparse.
    left_out: reasons why capacity factors were left out.
    gallery: a few images with their routing.
    metrics: rows of the run's metrics file.
  """

  name: str
  router: str
  step: int
  data: str
  class_names: list[str]
  num_images: int
  tokens_per_image: int
  group_images: int
  trained_capacity: float | None
  capacity_factor: float | None
  slots_per_expert: int
  accuracy: Estimate
  layers: dict[str, LayerStatistics] = dataclasses.field(repr=False)
  capacities: list[CapacityPoint]
  left_out: list[str]
  gallery: Gallery = dataclasses.field(repr=False)
  metrics: Sequence[Mapping[str, float]] = dataclasses.field(repr=False)

  def to_dict(self) -> dict[str, Any]:
    """The measurements as a JSON-able dictionary; NaN becomes None."""
    names = [field.name for field in dataclasses.fields(self)]
    numbers = [n for n in names if n not in ("gallery", "metrics")]
    return {name: jsonable(getattr(self, name)) for name in numbers}

  def figures(self) -> dict[str, Figure]:
    """All figures by name; none for a dense model.

    In a notebook, `%matplotlib inline` makes cells show them.

    The names are "patches" (images with patches coloured by expert), "training"
    (load over training), "capacity" (accuracy against capacity), and for every
    layer "LAYER_charts", "LAYER_classes", "LAYER_patches" and "LAYER_tensors".
    "training" and "capacity" are missing if there is nothing to show.
    """
    from vmoe_study.drawing.fonts import fit_fonts
    from vmoe_study.inspection import charts, pictures

    if not self.layers:
      return {}
    figures = {"patches": pictures.patches_picture(self.gallery)}
    if training := charts.training_chart(self.metrics, list(self.layers)):
      figures["training"] = training
    if self.capacities:
      figures["capacity"] = charts.capacity_chart(
        self.capacities, self.trained_capacity
      )
    for name, layer in self.layers.items():
      figures |= {
        f"{name}_charts": charts.expert_charts(layer),
        f"{name}_classes": charts.class_matrix(layer, self.class_names),
        f"{name}_patches": pictures.experts_picture(self.gallery, name),
        f"{name}_tensors": pictures.tensors_picture(
          self.gallery.layers[name], self.tokens_per_image
        ),
      }
    return {name: fit_fonts(figure) for name, figure in figures.items()}
