"""Statistics of routing, from the measurements on each image."""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array
from scipy.special import entr

from vmoe_study.inspection.content import (
  ContentStatistics,
  PatchRouting,
  content_statistics,
)
from vmoe_study.inspection.measure import ImageRouting
from vmoe_study.study.statistics import Estimate, estimate

SHUFFLES = 20
SEED = 0


@dataclasses.dataclass(frozen=True)
class LayerStatistics:
  """Statistics of one routed layer; entropies and information are in nats.

  Axis T counts classes.

  Attributes:
    load: tokens sent to each expert, divided by the mean over experts.
    combine_weight: combine weight of each expert, mean over tokens.
    unprocessed: share of tokens that no expert processes.
    experts_per_token: shares of tokens that 0, 1, ..., E experts process.
    router_entropy: entropy of the router's probabilities, mean over tokens; at
      most ln E.
    load_entropy: entropy of the experts' shares of the load; at most ln E.
    slot_use: share of each expert's slots that hold a token; for Soft MoE their
      dispatch weight, which is 1.
    class_by_expert: shares of a class's combine weight by expert; NaN for a
      class without combine weight. The dispatch weights would show nothing
      where every expert takes equally many tokens of every image: in Soft MoE,
      and in expert choice with groups of one image.
    mutual_information: mutual information of class and expert under the
      combine weights.
    shuffled_information: the same with the classes of the images permuted at
      random, averaged over `SHUFFLES` permutations: the chance level.
    accuracy_drop: drop in accuracy without each expert, with its 95% interval
      over images; negative if accuracy rises.
    accuracy_drop_all: drop in accuracy without any expert.
    content: routing of patches with and without content.
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
  content: ContentStatistics


@dataclasses.dataclass(frozen=True)
class CapacityPoint:
  """Accuracy of the checkpoint with another capacity factor.

  Attributes:
    factor: capacity factor.
    slots_per_expert: C, the capacity after rounding.
    accuracy: accuracy with its 95% interval over images.
    change: paired difference from the accuracy of the inspection.
  """

  factor: float
  slots_per_expert: int
  accuracy: Estimate
  change: Estimate


def layer_statistics(
  routing: ImageRouting,
  patches: PatchRouting,
  labels: Float[Array, "N T"],
  slots_per_image: float,
  correct: Float[Array, "N"],
  without: Float[Array, "N E+1"],
) -> LayerStatistics:
  """Computes the statistics of one layer.

  Args:
    routing: NumPy arrays with one row per image.
    patches: NumPy arrays with one row per image.
    labels: label mass of each image and class.
    slots_per_image: slots of each expert per image: C / images per group.
    correct: 1 for an image that is classified correctly, else 0.
    without: the same without each expert and, in the last column, without any.
  """
  num_tokens = routing.tokens_by_experts.sum()
  load = routing.dispatched.sum(axis=0)
  drops = [estimate(correct - column) for column in np.transpose(without)]
  return LayerStatistics(
    load=load / max(load.mean(), 1e-9),
    combine_weight=routing.combined.sum(axis=0) / num_tokens,
    unprocessed=float(routing.tokens_by_experts[:, 0].sum() / num_tokens),
    experts_per_token=routing.tokens_by_experts.sum(axis=0) / num_tokens,
    router_entropy=float(routing.entropy.sum() / num_tokens),
    load_entropy=entropy(load),
    slot_use=load / (len(labels) * slots_per_image),
    class_by_expert=class_by_expert(labels, routing.combined),
    mutual_information=mutual_information(labels.T @ routing.combined),
    shuffled_information=_shuffled_information(labels, routing.combined),
    accuracy_drop=drops[:-1],
    accuracy_drop_all=drops[-1],
    content=content_statistics(patches),
  )


def entropy(weights: Float[Array, "..."]) -> float:
  """Entropy in nats of normalised weights >= 0; 0 if all are 0."""
  return float(entr(weights / max(np.sum(weights), 1e-30)).sum())


def mutual_information(weights: Float[Array, "T E"]) -> float:
  """Mutual information of rows and columns of a table of weights, in nats."""
  rows, columns = weights.sum(axis=1), weights.sum(axis=0)
  return max(0.0, entropy(rows) + entropy(columns) - entropy(weights))


def class_by_expert(
  labels: Float[Array, "N T"], combined: Float[Array, "N E"]
) -> Float[Array, "T E"]:
  """Shares of each class's combine weight; NaN for a class without any."""
  weights = labels.T @ combined
  totals = weights.sum(axis=1, keepdims=True)
  return np.divide(
    weights, totals, out=np.full_like(weights, np.nan), where=totals > 0
  )


def _shuffled_information(
  labels: Float[Array, "N T"], combined: Float[Array, "N E"]
) -> float:
  rng = np.random.default_rng(SEED)
  values = [
    mutual_information(labels.T @ rng.permutation(combined))
    for _ in range(SHUFFLES)
  ]
  return float(np.mean(values))


def jsonable(value: Any) -> Any:
  """Converts dataclasses and arrays to JSON's types, NaN to None."""
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
