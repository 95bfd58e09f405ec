"""The assembly of an inspection: from a trained model to numbers and pictures.

All is measured on the first of the data sets that the model is evaluated on.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from vmoe_study.data.pipeline import EvalInput, eval_input
from vmoe_study.data.sources import open_source
from vmoe_study.inspection.charts import (
  capacity_chart,
  class_matrix,
  expert_charts,
  training_chart,
)
from vmoe_study.inspection.effects import (
  measure_ablation,
  measure_correct,
)
from vmoe_study.inspection.measure import (
  Batch,
  examine,
  layer_names,
  measure_routing,
  measure_shown,
)
from vmoe_study.inspection.pictures import (
  Gallery,
  experts_picture,
  patches_picture,
  tensors_picture,
)
from vmoe_study.inspection.statistics import (
  CapacityPoint,
  Findings,
  LayerStatistics,
  layer_statistics,
)
from vmoe_study.nn import cost
from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.router import ROUTERS, SparseRouter, make_router
from vmoe_study.parallel import sharding
from vmoe_study.run.experiment import Model
from vmoe_study.study.statistics import estimate


class Subject:
  """A trained model, and the first of the data sets that it is evaluated on."""

  def __init__(self, model: Model, params: Any):
    """Opens the data.

    Raises:
      ValueError: the config evaluates nothing.
      MissingDataError: the data set is not prepared; names the command.
    """
    if not model.config.evaluations:
      raise ValueError(
        "The config has no `evaluations`: no images to look at. Give "
        "--config=FILE.py[:ARGUMENTS] with some."
      )
    self.model, self.params = model, params
    self.data_name, self._spec = next(iter(model.config.evaluations.items()))
    data = self._spec.data
    self._source = open_source(
      data.name, data.split, data.data_dir, data.label_key
    )
    self.class_names = [str(label) for label in self._source.label_names]

  def images(self, count: int) -> EvalInput:
    """Images spread over the data set: `count`, made up to whole groups.

    Raises:
      ValueError: the data set has fewer images than a group.
    """
    group, total = self.model.config.group_images, len(self._source)
    count = min(-(-count // group), total // group) * group
    if not count:
      raise ValueError(
        f"{self.data_name} has {total} images, which is less than a group of "
        f"{group}. Lower --config.model.moe.group_images."
      )
    unit = self.model.mesh.size * group
    return eval_input(
      self._spec.data,
      batch_size=min(self._spec.batch_size, -(-count // unit) * unit),
      indices=np.arange(count) * total // count,
      num_workers=self.model.config.train.num_workers,
    )

  def place(self, batch: Batch) -> Batch:
    """Puts a batch onto the devices."""
    return sharding.to_global(self.model.mesh, batch)


def inspect(
  subject: Subject,
  name: str,
  step: int,
  num_images: int,
  capacity_factors: Iterable[float],
) -> Findings:
  """Measures all numbers.

  Args:
    subject: what is looked at.
    name: of the run.
    step: of the checkpoint.
    num_images: to measure, if there are so many; made up to whole groups.
    capacity_factors: to test sparse routers at; those that leave no slot are
      reported as left out.

  Raises:
    ValueError: the data set has fewer images than a group.
  """
  model, module = subject.model, subject.model.evaluation_module
  others, left_out = at_capacities(model, capacity_factors)
  found = examine(
    {
      "label": lambda params, batch: batch["label"],
      "correct": measure_correct(module),
      "routing": measure_routing(module),
      "without": measure_ablation(module),
      **{
        _at(factor): measure_correct(other.evaluation_module)
        for factor, other in others.items()
      },
    },
    subject.params,
    subject.images(num_images),
    subject.place,
  )
  return Findings(
    name=name,
    router=model.config.evaluation_moe.router,
    step=step,
    data=subject.data_name,
    class_names=subject.class_names,
    num_images=len(found["label"]),
    tokens_per_image=cost.tokens_per_image(module, model.image_shape),
    group_images=model.config.group_images,
    trained_capacity=_capacity_factor(model.config.model.moe),
    capacity_factor=_capacity_factor(model.config.evaluation_moe),
    slots_per_expert=_slots(model),
    accuracy=estimate(found["correct"]),
    layers=_layers(model, found),
    capacities=[
      CapacityPoint(
        factor,
        _slots(other),
        estimate(found[_at(factor)]),
        estimate(found[_at(factor)] - found["correct"]),
      )
      for factor, other in others.items()
    ],
    left_out=left_out,
  )


def at_capacities(
  model: Model, factors: Iterable[float]
) -> tuple[dict[float, Model], list[str]]:
  """The same model, evaluated at other capacities.

  Returns:
    Models by capacity factor, none for a router whose capacity cannot change;
    and why factors were left out.
  """
  found: dict[float, Model] = {}
  left_out: list[str] = []
  router = model.config.model.moe.router
  if not issubclass(ROUTERS[router].router, SparseRouter):
    return found, left_out
  for factor in factors:
    config = dataclasses.replace(model.config, evaluation_capacity=factor)
    other = Model(config, model.image_shape, model.mesh)
    try:
      _slots(other)
    except ValueError as error:
      left_out.append(str(error))
    else:
      found[factor] = other
  return found, left_out


def _at(factor: float) -> str:
  return f"correct at {factor!r}"


def _slots(model: Model) -> int:
  """C, or 0 in a dense model."""
  sizes = cost.routing(model.evaluation_module, model.image_shape)
  return sizes.slots_per_group // sizes.num_experts if sizes else 0


def _capacity_factor(moe: MoeOptions) -> float | None:
  router = make_router(moe.router, **moe.options)
  return getattr(router, "capacity_factor", None)


def _layers(
  model: Model, found: Mapping[str, Any]
) -> dict[str, LayerStatistics]:
  slots_per_image = _slots(model) / model.config.group_images
  return {
    layer: layer_statistics(
      found["routing"][layer],
      found["label"],
      slots_per_image,
      found["correct"],
      found["without"][layer],
    )
    for layer in layer_names(model.evaluation_module)
  }


def gallery(subject: Subject, count: int) -> Gallery:
  """Images with their routing, to be shown; whole groups of them.

  Raises:
    ValueError: the data set has fewer images than a group.
  """
  model = subject.model
  batch = next(iter(subject.images(count)))
  measure = measure_shown(model.evaluation_module)
  shown = measure(subject.params, subject.place(batch)["image"])
  classes = batch["label"].argmax(axis=1)
  return Gallery(
    images=batch["image"],
    titles=[subject.class_names[number] for number in classes],
    count=min(count, int(batch["mask"].sum())),
    patch_size=model.module.patch_size,
    layers={
      layer: jax.device_get(shown[layer])
      for layer in layer_names(model.evaluation_module)
    },
  )


def make_pictures(
  findings: Findings,
  gallery: Gallery,
  metrics: Sequence[Mapping[str, float]],
) -> dict[str, Figure]:
  """Every picture of the page, by its name there.

  Args:
    findings: numbers.
    gallery: images.
    metrics: rows of the run's metrics file.
  """
  if not findings.layers:
    return {}
  found = {"patches": patches_picture(gallery)}
  if training := training_chart(metrics, list(findings.layers)):
    found["training"] = training
  if findings.capacities:
    found["capacity"] = capacity_chart(findings)
  for name, layer in findings.layers.items():
    found[f"{name}_charts"] = expert_charts(layer)
    found[f"{name}_classes"] = class_matrix(layer, findings.class_names)
    found[f"{name}_patches"] = experts_picture(gallery, name)
    found[f"{name}_tensors"] = tensors_picture(
      gallery.layers[name], findings.tokens_per_image
    )
  return found
