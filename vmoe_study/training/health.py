"""Health checks of a run: non-finite steps and collapsed routers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from absl import logging

from vmoe_study.options import check_least

LOAD, UNPROCESSED = "/load", "/unprocessed"
MUST_BE_FINITE = "loss", "gradient_norm", "update_norm"


class TrainingFailure(Exception):
  """Training cannot or should not continue; names the step and the reason."""


@dataclasses.dataclass(frozen=True)
class HealthSpec:
  """Thresholds of the health checks, and what to do when one is exceeded.

  Attributes:
    on_nonfinite: what to do with a step whose loss, gradient or update is not
      finite: "stop" training, or "skip" the update and count it.
    collapse_steps: a router has collapsed if for this many consecutive steps an
      expert got no token, or more than `max_unprocessed` of the tokens got no
      expert; 0 turns the check off. A resumed run counts from 0.
    max_unprocessed: fraction of the tokens, in [0, 1].
    on_collapse: "warn", or "stop" training.

  Raises:
    ValueError: for a number out of range.
  """

  on_nonfinite: Literal["stop", "skip"] = "stop"
  collapse_steps: int = 100
  max_unprocessed: float = 0.8
  on_collapse: Literal["warn", "stop"] = "warn"

  def __post_init__(self):
    check_least("collapse_steps", self.collapse_steps, 0)
    if not 0 <= self.max_unprocessed <= 1:
      raise ValueError(
        f"max_unprocessed={self.max_unprocessed}: must be from 0 to 1."
      )


def is_watched(name: str) -> bool:
  """Whether a metric is needed after every step, not only for reports."""
  return name in MUST_BE_FINITE or (
    name.startswith("routing/") and name.endswith((LOAD, UNPROCESSED))
  )


def is_finite(metrics: Mapping[str, Any]) -> bool:
  """Whether the step was finite, by the rule of `training.step`.

  Args:
    metrics: metrics of the step; those in `MUST_BE_FINITE` must be present.
  """
  return all(math.isfinite(metrics[name]) for name in MUST_BE_FINITE)


class CollapseDetector:
  """Detects collapsed routers from the metrics of consecutive steps."""

  def __init__(self, spec: HealthSpec):
    self._spec = spec
    # By layer, the current number of consecutive steps without a token, for
    # each expert, and with too many unprocessed tokens.
    self._unused: dict[str, np.ndarray] = {}
    self._dropping: dict[str, np.ndarray] = {}

  def __call__(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Checks the metrics of a finished step, and warns of a collapse.

    Args:
      step: number of the step.
      metrics: metrics of the step, as `routing_metrics` names them.

    Raises:
      TrainingFailure: if a router has just collapsed and `on_collapse` is
        "stop".
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
          found.append(f"{layer}: {value:.0%} of the tokens got no expert")
    if found:
      self._report(step, found)

  def metrics(self) -> dict[str, int]:
    """The number of collapsed experts in each layer."""
    return {
      f"routing/{layer}/unused_experts": int(np.sum(self._is_collapsed(counts)))
      for layer, counts in self._unused.items()
    }

  def _count(
    self, counts: dict[str, np.ndarray], layer: str, is_bad: np.ndarray
  ) -> np.ndarray:
    """Updates the counts; returns the indices that just reached the limit."""
    counts[layer] = np.where(is_bad, counts.get(layer, 0) + 1, 0)
    limit = self._spec.collapse_steps
    return np.flatnonzero((counts[layer] == limit) & (limit > 0))

  def _is_collapsed(self, counts: np.ndarray) -> np.ndarray:
    limit = self._spec.collapse_steps
    return (counts >= limit) & (limit > 0)

  def _report(self, step: int, found: list[str]) -> None:
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
