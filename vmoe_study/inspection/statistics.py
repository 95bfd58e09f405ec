"""Statistics of what routers do, from numbers per image (`inspection`)."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.special import entr

from vmoe_study.inspection.measure import ImageRouting
from vmoe_study.study.statistics import Estimate, estimate

SHUFFLES = 20
SEED = 0


@dataclasses.dataclass(frozen=True)
class LayerStatistics:
  """One routed layer; entropies and information are in nats.

  Attributes:
    load: tokens sent to each expert, over the mean of all experts.
    combine_weight: of each expert, mean over tokens.
    unprocessed: share of tokens that no expert processes.
    experts_per_token: shares of tokens that 0, 1, ..., E experts process.
    router_entropy: of the router's probabilities, mean over tokens; at most
      ln E.
    load_entropy: of the experts' shares of the load; at most ln E.
    slot_use: share of each expert's slots that hold a token; for Soft MoE the
      dispatch weight in them, which is 1.
    class_by_expert: a class's combine weight by expert, as shares; NaN for a
      class to which nothing returns. Combine, as Dispatch says nothing where
      each expert takes equally much of every image: Soft MoE and expert choice
      in groups of one image.
    mutual_information: of class and expert, over combine weight.
    shuffled_information: the same if images swap their classes at random, mean
      over `SHUFFLES` shuffles: what chance alone gives.
    accuracy_drop: by which accuracy falls without each expert, and its 95%
      interval over images; negative where it rises.
    accuracy_drop_all: without all of them.
  """

  load: Float[Array, "E"]
  combine_weight: Float[Array, "E"]
  unprocessed: float
  experts_per_token: Float[Array, "E+1"]
  router_entropy: float
  load_entropy: float
  slot_use: Float[Array, "E"]
  class_by_expert: Float[Array, "T E"]
  mutual_information: float
  shuffled_information: float
  accuracy_drop: list[Estimate]
  accuracy_drop_all: Estimate


@dataclasses.dataclass(frozen=True)
class CapacityPoint:
  """Accuracy of one checkpoint at some capacity.

  Attributes:
    factor: capacity factor.
    slots_per_expert: C, which rounding made of it.
    accuracy: with its 95% interval over images.
    change: of the accuracy, from that of the inspection, image by image.
  """

  factor: float
  slots_per_expert: int
  accuracy: Estimate
  change: Estimate


@dataclasses.dataclass(frozen=True)
class Findings:
  """All numbers of an inspection.

  Attributes:
    name: of the run.
    router: a name of the zoo.
    step: of the checkpoint.
    data: the evaluation set.
    class_names: T of them.
    num_images: that were looked at.
    tokens_per_image: L, class token included.
    group_images: images routed together.
    trained_capacity: capacity factor in training; None in a dense model.
    capacity_factor: in this evaluation; None in a dense model.
    slots_per_expert: C; 0 in a dense model.
    accuracy: on these images.
    layers: by name, from the first to the last; none in a dense model.
    capacities: accuracy against capacity; empty where it cannot change.
    left_out: why capacity factors were not measured.
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
  layers: dict[str, LayerStatistics]
  capacities: list[CapacityPoint]
  left_out: list[str]


def layer_statistics(
  routing: ImageRouting,
  labels: Float[Array, "N T"],
  slots_per_image: float,
  correct: Float[Array, "N"],
  without: Float[Array, "N E+1"],
) -> LayerStatistics:
  """Sums up one layer.

  Args:
    routing: NumPy arrays, a row per image.
    labels: how much each image belongs to each class.
    slots_per_image: of each expert: C over the images of a group.
    correct: 1 for an image that is classified correctly, else 0.
    without: the same without each expert and, last, without any.
  """
  total = routing.tokens_by_experts.sum()
  load = routing.sent.sum(axis=0)
  drops = [estimate(correct - column) for column in np.transpose(without)]
  return LayerStatistics(
    load=load / max(load.mean(), 1e-9),
    combine_weight=routing.returned.sum(axis=0) / total,
    unprocessed=float(routing.tokens_by_experts[:, 0].sum() / total),
    experts_per_token=routing.tokens_by_experts.sum(axis=0) / total,
    router_entropy=float(routing.entropy.sum() / total),
    load_entropy=entropy(load),
    slot_use=load / (len(labels) * slots_per_image),
    class_by_expert=class_by_expert(labels, routing.returned),
    mutual_information=mutual_information(labels.T @ routing.returned),
    shuffled_information=_shuffled_information(labels, routing.returned),
    accuracy_drop=drops[:-1],
    accuracy_drop_all=drops[-1],
  )


def entropy(weights: Float[Array, "..."]) -> float:
  """Of weights >= 0, as shares of their sum; in nats, 0 if all are 0."""
  return float(entr(weights / max(np.sum(weights), 1e-30)).sum())


def mutual_information(weights: Float[Array, "T E"]) -> float:
  """Of row and column, under the joint distribution of the weights; in nats."""
  rows, columns = weights.sum(axis=1), weights.sum(axis=0)
  return max(0.0, entropy(rows) + entropy(columns) - entropy(weights))


def class_by_expert(
  labels: Float[Array, "N T"], returned: Float[Array, "N E"]
) -> Float[Array, "T E"]:
  """Each class's combine weight as shares; NaN for a class without any."""
  weights = labels.T @ returned
  totals = weights.sum(axis=1, keepdims=True)
  return np.divide(
    weights, totals, out=np.full_like(weights, np.nan), where=totals > 0
  )


def _shuffled_information(
  labels: Float[Array, "N T"], returned: Float[Array, "N E"]
) -> float:
  rng = np.random.default_rng(SEED)
  found = [
    mutual_information(labels.T @ rng.permutation(returned))
    for _ in range(SHUFFLES)
  ]
  return float(np.mean(found))


def jsonable(value: Any) -> Any:
  """The same in JSON's types; NaN becomes null."""
  if dataclasses.is_dataclass(value):
    fields = dataclasses.fields(value)
    return {f.name: jsonable(getattr(value, f.name)) for f in fields}
  if isinstance(value, dict):
    return {key: jsonable(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [jsonable(item) for item in value]
  if isinstance(value, np.ndarray | np.generic):
    return jsonable(value.tolist())
  return None if isinstance(value, float) and math.isnan(value) else value
