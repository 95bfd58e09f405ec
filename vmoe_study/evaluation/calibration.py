"""Calibration: whether a model is right as often as its confidence says."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from vmoe_study.evaluation.intervals import Proportion, wilson

BINS = 15


@dataclasses.dataclass(frozen=True)
class Calibration:
  """Images in equal-width bins of confidence, as in a reliability diagram.

  The confidence is the probability of the most probable class. A bin contains
  the confidences above its lower edge, up to and including its upper edge.

  Attributes:
    edges: edges of the bins, from 0 to 1.
    images: number of images in each bin.
    correct: number of these images whose most probable class is correct.
    confidence: mean confidence in each bin; NaN in an empty one.
  """

  edges: Float[np.ndarray, "bins+1"]
  images: Int[np.ndarray, "bins"]
  correct: Int[np.ndarray, "bins"]
  confidence: Float[np.ndarray, "bins"]

  @classmethod
  def of(
    cls,
    confidence: Float[np.ndarray, "N"],
    correct: Bool[np.ndarray, "N"],
    bins: int = BINS,
  ) -> "Calibration":
    """Sorts images into bins."""
    edges = np.linspace(0, 1, bins + 1)
    confidence = np.clip(np.asarray(confidence, np.float64), 0, 1)
    place = np.digitize(confidence, edges[1:-1], right=True)
    images = np.bincount(place, minlength=bins)
    sums = np.bincount(place, confidence, minlength=bins)
    right = np.bincount(place, correct, minlength=bins).astype(np.int64)
    mean = np.divide(sums, images, np.full(bins, np.nan), where=images > 0)
    return cls(edges, images, right, mean)

  @property
  def accuracy(self) -> Proportion:
    """The accuracy in each bin, with its interval."""
    return wilson(self.correct, self.images)

  @property
  def error(self) -> float:
    """The expected calibration error (Naeini et al. 2015; Guo et al. 2017).

    The mean over images of |accuracy - mean confidence| of their bin.
    """
    gaps = np.abs(self.accuracy.value - self.confidence) * self.images
    return float(np.nansum(gaps) / max(self.images.sum(), 1))
