"""Inspects the routers of a checkpoint, on images of its evaluation."""

from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging
from etils import epath

from vmoe_study.files.location import expand
from vmoe_study.inspection.content import patch_routing
from vmoe_study.inspection.effects import (
  at_capacities,
  measure_ablation,
  measure_correct,
  slots_per_expert,
)
from vmoe_study.inspection.files import write_inspection
from vmoe_study.inspection.gallery import make_gallery
from vmoe_study.inspection.images import EvaluationImages
from vmoe_study.inspection.measure import (
  image_routing,
  layer_names,
  measure_images,
  measure_routing,
)
from vmoe_study.inspection.result import Inspection
from vmoe_study.inspection.statistics import (
  CapacityPoint,
  LayerStatistics,
  layer_statistics,
)
from vmoe_study.nn import cost
from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.zoo import make_router
from vmoe_study.run.checkpoint import Checkpoint, open_checkpoint
from vmoe_study.run.experiment import Model
from vmoe_study.study.statistics import estimate
from vmoe_study.training.metrics_file import read_metrics

CAPACITY_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


def inspect(
  checkpoint: Checkpoint | epath.PathLike,
  *,
  num_images: int = 2000,
  num_shown: int = 6,
  capacity_factors: Iterable[float] = CAPACITY_FACTORS,
  out: epath.PathLike | None = None,
) -> Inspection:
  """Measures what the routers of a checkpoint do.

  Takes images from the first data set under `config.evaluations`, spread evenly
  over it. Runs in one process, on all of its devices.

  Args:
    checkpoint: an opened checkpoint, or the workdir of a run.
    num_images: number of images to measure, rounded up to whole groups; all if
      the data set has fewer.
    num_shown: number of images in the figures.
    capacity_factors: capacity factors at which the accuracy of sparse routers
      is measured. Those that leave no slot are skipped and reported.
    out: folder for index.html, statistics.json and the figures as PNG files;
      None for no files.

  Returns:
    The measurements; the method `figures` draws them.

  Raises:
    ValueError: the config evaluates nothing, the data set has fewer images than
      a routing group, or its folder is not confirmed (`open_checkpoint`).
    CheckpointError: there is no intact checkpoint.
    MissingDataError: the data set is not prepared; names the command.

  >>> inspection = inspect("runs/digits", num_images=64, capacity_factors=[])
  >>> layer = inspection.layers["encoderblock_1"]
  >>> layer.load.shape  # Tokens of each expert, divided by their mean.
  (8,)
  >>> figure = inspection.figures()["patches"]
  """
  if out is not None:
    out = expand("out", out)
  if not isinstance(checkpoint, Checkpoint):
    checkpoint = open_checkpoint(checkpoint)
  model, variables = checkpoint.model, checkpoint.variables
  images = EvaluationImages(
    model, checkpoint.unconfirmed, checkpoint.class_names
  )
  models, left_out = at_capacities(model, capacity_factors)
  logging.info("measuring up to %d images", num_images)
  measured = _measure(model, variables, images, num_images, models)
  inspection = Inspection(
    name=checkpoint.path.name,
    router=model.config.evaluation_moe.router,
    step=checkpoint.step,
    data=images.name,
    class_names=images.class_names,
    num_images=len(measured["label"]),
    tokens_per_image=cost.tokens_per_image(model.module, model.image_shape),
    group_images=model.config.group_images,
    trained_capacity=_capacity_factor(model.config.model.moe),
    capacity_factor=_capacity_factor(model.config.evaluation_moe),
    slots_per_expert=slots_per_expert(model),
    accuracy=estimate(measured["correct"]),
    layers=_layers(model, measured),
    capacities=_capacities(models, measured),
    left_out=left_out,
    gallery=make_gallery(model, variables, images, num_shown),
    metrics=list(read_metrics(checkpoint.path)),
  )
  if out is not None:
    logging.info("drawing")
    write_inspection(inspection, out)
  return inspection


def _measure(
  model: Model,
  variables: Any,
  images: EvaluationImages,
  num_images: int,
  models_at_capacities: Mapping[float, Model],
) -> dict[str, Any]:
  """Measures everything per image, in one pass over the data."""
  module = model.evaluation_module

  def summarize(tokens, images):
    patches = patch_routing(tokens, images, module.patch_size)
    return image_routing(tokens), patches

  measures = {
    "label": lambda variables, batch: batch["label"],
    "correct": measure_correct(module),
    "routing": measure_routing(module, summarize),
    "without": measure_ablation(module),
  }
  for factor, other in models_at_capacities.items():
    measures[_correct_at(factor)] = measure_correct(other.evaluation_module)
  return measure_images(
    measures, variables, images.batches(num_images), images.to_devices
  )


def _correct_at(factor: float) -> str:
  return f"correct at {factor!r}"


def _layers(
  model: Model, measured: Mapping[str, Any]
) -> dict[str, LayerStatistics]:
  slots_per_image = slots_per_expert(model) / model.config.group_images
  return {
    layer: layer_statistics(
      *measured["routing"][layer],
      measured["label"],
      slots_per_image,
      measured["correct"],
      measured["without"][layer],
    )
    for layer in layer_names(model.evaluation_module)
  }


def _capacities(
  models: Mapping[float, Model], measured: Mapping[str, Any]
) -> list[CapacityPoint]:
  return [
    CapacityPoint(
      factor,
      slots_per_expert(other),
      estimate(measured[_correct_at(factor)]),
      estimate(measured[_correct_at(factor)] - measured["correct"]),
    )
    for factor, other in models.items()
  ]


def _capacity_factor(moe: MoeOptions) -> float | None:
  if not moe.is_routed:
    return None
  router = make_router(moe.router, **moe.options)
  return None if router.is_dropless else router.capacity_factor
