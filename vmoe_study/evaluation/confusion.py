"""The confusion matrix: which classes a model confuses."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int


class Pair(NamedTuple):
  """A pair of classes that a model confuses.

  Attributes:
    label: the true class of the images.
    predicted: the class that is predicted for them.
    count: number of images.
    share: their share of all images of the true class.
  """

  label: int
  predicted: int
  count: int
  share: float


@dataclasses.dataclass(frozen=True)
class Confusion:
  """Counts of images by true and predicted class; only nonzero ones are kept.

  Attributes:
    num_classes: number of classes.
    label: true class, P values in ascending order.
    predicted: predicted class, P values.
    count: number of images, P values.
  """

  num_classes: int
  label: Int[np.ndarray, "P"]
  predicted: Int[np.ndarray, "P"]
  count: Int[np.ndarray, "P"]

  @classmethod
  def of(
    cls,
    label: Int[np.ndarray, "N"],
    predicted: Int[np.ndarray, "N"],
    num_classes: int,
  ) -> "Confusion":
    """Counts images by their true and predicted class."""
    cells = np.asarray(label, np.int64) * num_classes + predicted
    cells, count = np.unique(cells, return_counts=True)
    return cls(num_classes, *np.divmod(cells, num_classes), count)

  @property
  def images(self) -> Int[np.ndarray, "classes"]:
    """Number of images of every class."""
    return self._sums(self.label, self.count)

  @property
  def predictions(self) -> Int[np.ndarray, "classes"]:
    """Number of images for which each class is predicted."""
    return self._sums(self.predicted, self.count)

  @property
  def correct(self) -> Int[np.ndarray, "classes"]:
    """Number of images of every class that are classified correctly."""
    return self._sums(self.label, self.count * (self.label == self.predicted))

  def _sums(self, classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    sums = np.zeros(self.num_classes, np.int64)
    np.add.at(sums, classes, counts)
    return sums

  def matrix(
    self, classes: Int[np.ndarray, "n"] | None = None
  ) -> Int[np.ndarray, "n n"]:
    """The counts of some classes (default: all); one row per true class."""
    if classes is None:
      classes = np.arange(self.num_classes)
    place = np.full(self.num_classes, -1)
    place[classes] = np.arange(len(classes))
    kept = (place[self.label] >= 0) & (place[self.predicted] >= 0)
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    rows, columns = place[self.label[kept]], place[self.predicted[kept]]
    matrix[rows, columns] = self.count[kept]
    return matrix

  def blocks(self, size: int) -> Int[np.ndarray, "n n"]:
    """The counts of blocks of `size` neighbouring classes."""
    width = -(-self.num_classes // size)
    matrix = np.zeros((width, width), np.int64)
    np.add.at(matrix, (self.label // size, self.predicted // size), self.count)
    return matrix

  def pairs(self) -> Iterator[Pair]:
    """The confused pairs, the most frequent mistake first."""
    images = self.images
    wrong = np.flatnonzero(self.label != self.predicted)
    order = wrong[np.argsort(-self.count[wrong], kind="stable")]
    for place in order:
      label, count = int(self.label[place]), int(self.count[place])
      share = count / int(images[label])
      yield Pair(label, int(self.predicted[place]), count, share)

  def most_confused(self, count: int) -> Int[np.ndarray, "n"]:
    """The classes of the most frequent mistakes, ascending; up to `count`."""
    found: dict[int, None] = {}
    for pair in self.pairs():
      more = {**found, pair.label: None, pair.predicted: None}
      if len(more) > count:
        break
      found = more
    return np.array(sorted(found), np.int64)
