"""The best evaluation of a run so far, and the patience of early stopping."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

from vmoe_study.options import check_least


@dataclasses.dataclass(frozen=True)
class BestSpec:
  """Which evaluation is best, whether its model is kept, and early stopping.

  Attributes:
    metric: metric of an evaluation, such as "test/accuracy" or
      "fewshot/digits/5shot". For ".../loss" the lowest value is best, for other
      metrics the highest. Empty keeps no best model.
    patience: number of consecutive evaluations without improvement after which
      training ends; 0 to train to the last step.

  Raises:
    ValueError: for a number out of range, or patience without a metric.
  """

  metric: str = ""
  patience: int = 0

  def __post_init__(self):
    check_least("patience", self.patience, 0)
    if self.patience and not self.metric:
      raise ValueError(
        f"patience={self.patience}: needs a metric to compare evaluations by. "
        "Set metric, for example to 'test/accuracy'."
      )


@dataclasses.dataclass
class BestSoFar:
  """The best of the evaluations passed to `update`.

  Attributes:
    spec: defines which evaluation is the best.
    step: step of the best evaluation; -1 before there is any.
    value: value of the metric at that step.
    evaluations_since_best: number of evaluations since then.
  """

  spec: BestSpec
  step: int = -1
  value: float = math.nan
  evaluations_since_best: int = 0

  def update(self, step: int, metrics: Mapping[str, float]) -> bool:
    """Takes the metrics of an evaluation; returns whether it is the best.

    Of equal evaluations the first is the best; NaN never is.
    """
    value = metrics[self.spec.metric]
    if not self._is_better(value):
      self.evaluations_since_best += 1
      return False
    self.step, self.value, self.evaluations_since_best = step, value, 0
    return True

  def replay(self, rows: Iterable[Mapping[str, float]]) -> "BestSoFar":
    """Takes the evaluations among rows of a metrics file; returns itself."""
    for row in rows:
      if self.spec.metric in row:
        self.update(int(row["step"]), row)
    return self

  @property
  def is_exhausted(self) -> bool:
    """Whether the patience is exhausted."""
    return 0 < self.spec.patience <= self.evaluations_since_best

  def _is_better(self, value: float) -> bool:
    if math.isnan(value) or math.isnan(self.value):
      return not math.isnan(value)
    is_loss = self.spec.metric.endswith("/loss")
    return value < self.value if is_loss else value > self.value
