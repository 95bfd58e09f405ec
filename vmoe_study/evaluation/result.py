"""The result of an evaluation on one data set."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from vmoe_study.evaluation.calibration import Calibration
from vmoe_study.evaluation.confusion import Confusion
from vmoe_study.evaluation.intervals import Proportion, wilson
from vmoe_study.evaluation.outcomes import Outcomes


@dataclasses.dataclass(frozen=True)
class Classification:
  """Predictions and metrics for the N images of a data set.

  Attributes:
    name: name of the evaluation.
    class_names: names of all classes.
    index: index of each image in the data set, ascending.
    outcomes: predictions for each image.
    scores: the logits, if images may have several labels and all logits fit
      into memory; else None.
    targets: the labels that correspond to the scores.
  """

  name: str
  class_names: Sequence[str]
  index: Int[np.ndarray, "N"] = dataclasses.field(repr=False)
  outcomes: Outcomes = dataclasses.field(repr=False)
  scores: Float[np.ndarray, "N classes"] | None = dataclasses.field(
    default=None, repr=False
  )
  targets: Bool[np.ndarray, "N classes"] | None = dataclasses.field(
    default=None, repr=False
  )

  @property
  def num_images(self) -> int:
    """N."""
    return len(self.index)

  @functools.cached_property
  def one_label(self) -> bool:
    """Whether every image has one label, so that a confusion matrix exists."""
    return bool(np.all(self.outcomes.num_labels == 1))

  @property
  def accuracy(self) -> Proportion:
    """Fraction of images whose most probable class is one of their labels."""
    return wilson(self.outcomes.correct.sum(), self.num_images)

  @functools.cached_property
  def confusion(self) -> Confusion | None:
    """The confusion matrix; None unless every image has one label."""
    if not self.one_label:
      return None
    found = self.outcomes
    return Confusion.of(found.label, found.classes[:, 0], len(self.class_names))

  @functools.cached_property
  def calibration(self) -> Calibration:
    """Accuracy as a function of the probability of the most probable class."""
    found = self.outcomes
    return Calibration.of(found.probabilities[:, 0], found.correct)

  @functools.cached_property
  def average_precision(self) -> Float[np.ndarray, "classes"] | None:
    """Area under precision over recall; NaN for a class without images.

    The mean of the precision at the rank of every image of the class, images
    sorted by the class's score. None without scores.
    """
    if self.scores is None or self.targets is None:
      return None
    from sklearn.metrics import average_precision_score  # Takes a second.

    return np.array(
      [
        average_precision_score(target, score) if target.any() else np.nan
        for target, score in zip(self.targets.T, self.scores.T, strict=True)
      ]
    )

  @property
  def mistakes(self) -> Int[np.ndarray, "M"]:
    """Rows of the misclassified images, the most confident ones first."""
    wrong = np.flatnonzero(~self.outcomes.correct)
    sure = self.outcomes.probabilities[wrong, 0]
    return wrong[np.argsort(-sure, kind="stable")]

  def metrics(self) -> dict[str, float]:
    """Scalars by name, each beginning with the name of the evaluation.

    "accuracy" with its 95% Wilson interval, "accuracy_low" to "accuracy_high";
    "loss", the mean negative log-likelihood of the labels in nats; "brier", the
    mean squared error of the probabilities, summed over classes; "ece", the
    expected calibration error; "examples", the number of images; and, with
    scores, "mean_average_precision" over the classes with images.
    """
    accuracy, found = self.accuracy, self.outcomes
    values = {
      "accuracy": accuracy.value,
      "accuracy_low": accuracy.low,
      "accuracy_high": accuracy.high,
      "loss": _mean(found.loss),
      "brier": _mean(found.squared_error),
      "ece": self.calibration.error,
      "examples": self.num_images,
    }
    if self.average_precision is not None:
      known = self.average_precision[~np.isnan(self.average_precision)]
      values["mean_average_precision"] = _mean(known)
    return {f"{self.name}/{key}": float(value) for key, value in values.items()}


def _mean(values: np.ndarray) -> float:
  return float(np.mean(values, dtype=np.float64)) if len(values) else np.nan
