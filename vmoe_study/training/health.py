"""Watching a run: numbers that are not finite, routers that collapse."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from absl import logging

from vmoe_study.options import check_least

LOAD, UNPROCESSED = "/load", "/unprocessed"
DECISIVE = "loss", "gradient_norm", "update_norm"  # A sound step's are finite.


class TrainingFailure(Exception):
  """Training cannot or should not go on; says at which step, and why."""


@dataclasses.dataclass(frozen=True)
class HealthSpec:
  """When a run is unwell, and what happens then.

  A resumed run counts steps in a row anew.

  Attributes:
    on_nonfinite: a step with a loss, gradient or update that is not finite:
      "stop", or
      "skip" its update and count it.
    collapse_steps: steps in a row after which a router counts as collapsed: an
      expert got no token, or more than `max_unprocessed` of the tokens no
      expert; 0 for never.
    max_unprocessed: share of tokens.
    on_collapse: "warn", or "stop".
  """

  on_nonfinite: Literal["stop", "skip"] = "stop"
  collapse_steps: int = 100
  max_unprocessed: float = 0.8
  on_collapse: Literal["warn", "stop"] = "warn"

  def __post_init__(self):
    check_least("collapse_steps", self.collapse_steps, 0)
    if not 0 <= self.max_unprocessed <= 1:
      raise ValueError(
        f"max_unprocessed={self.max_unprocessed}: must be in [0, 1]."
      )


def is_watched(name: str) -> bool:
  """Whether a metric is needed of every step, and not only of reported ones."""
  return name in DECISIVE or (
    name.startswith("routing/") and name.endswith((LOAD, UNPROCESSED))
  )


def is_finite(metrics: Mapping[str, Any]) -> bool:
  """Whether a step counted, as the step itself decides on the devices."""
  return all(math.isfinite(metrics[name]) for name in DECISIVE)


class RouterWatch:
  """Counts for how many steps in a row experts and tokens were left out."""

  def __init__(self, spec: HealthSpec):
    self._spec = spec
    self._unused: dict[str, np.ndarray] = {}  # By layer, per expert.
    self._dropping: dict[str, np.ndarray] = {}  # By layer, one number.

  def __call__(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Takes in the metrics of a finished step.

    Raises:
      TrainingFailure: a router has just collapsed, and the run shall stop.
    """
    found = []
    for name, value in metrics.items():
      if name.endswith(LOAD):
        layer = _layer(name, LOAD)
        new = self._count(self._unused, layer, np.asarray(value) == 0)
        found += [f"{layer}: expert {expert} got no token" for expert in new]
      elif name.endswith(UNPROCESSED):
        layer = _layer(name, UNPROCESSED)
        dropping = np.asarray([value > self._spec.max_unprocessed])
        if len(self._count(self._dropping, layer, dropping)):
          found.append(f"{layer}: no expert took {value:.0%} of the tokens")
    if found:
      self._tell(step, found)

  def metrics(self) -> dict[str, int]:
    """Experts of each layer that are out of use for `collapse_steps` now."""
    return {
      f"routing/{layer}/unused_experts": int(np.sum(self._too_long(counts)))
      for layer, counts in self._unused.items()
    }

  def _count(self, counts, layer: str, ill: np.ndarray) -> np.ndarray:
    """Counts on; the indices that have just reached the limit."""
    counts[layer] = np.where(ill, counts.get(layer, 0) + 1, 0)
    limit = self._spec.collapse_steps
    return np.flatnonzero((counts[layer] == limit) & (limit > 0))

  def _too_long(self, counts: np.ndarray) -> np.ndarray:
    limit = self._spec.collapse_steps
    return (counts >= limit) & (limit > 0)

  def _tell(self, step: int, found: list[str]) -> None:
    text = (
      f"step {step}: routers have collapsed, for {self._spec.collapse_steps} "
      "steps in a row: " + "; ".join(found) + ". Raise the balance losses or "
      "the capacity, or lower the learning rate."
    )
    if self._spec.on_collapse == "stop":
      raise TrainingFailure(text)
    logging.warning("%s", text)


def _layer(name: str, kind: str) -> str:
  return name.removeprefix("routing/").removesuffix(kind)
