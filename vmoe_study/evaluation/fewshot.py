"""k-shot linear transfer: ridge regression on frozen features.

From k images per class, predict one-hot targets scaled to {-1, +1} from the
features before the head, for thirty penalties, and count how often the argmax
is right on the test images. Source: the evaluation of the V-MoE and Soft MoE
papers (arXiv:2106.05974, arXiv:2308.00951); ImageNet 10-shot is the headline.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Float, Int

PENALTIES = tuple(2.0**power for power in range(-10, 20))
BIAS = 100.0  # Large, so that the penalty hardly acts on the bias.
_STD_FLOOR = 1e-5
_ROWS = 4096  # Test images scored at a time: bounds memory.

Batch = Mapping[str, Any]


def select_shots(
  labels: Int[np.ndarray, "N"], num_classes: int, shots: int, seed: int
) -> Int[np.ndarray, "n"]:
  """Indices of `shots` images of each class, class after class.

  A class with fewer images gives all it has. For one seed, the images of fewer
  shots are among those of more shots.
  """
  labels = np.asarray(labels)
  rng = np.random.default_rng(seed)
  orders = [
    rng.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)
  ]
  return np.concatenate([order[:shots] for order in orders])


@dataclasses.dataclass(frozen=True)
class RidgePath:
  """Ridge regression for every penalty from one eigendecomposition, float64.

  X (N, D+1) are the whitened features with the constant column, Y (N, classes)
  the targets. The ridge solution is, in two equal forms,

    W = (X'X + l I)^-1 X'Y = X' (XX' + l I)^-1 Y.

  Take the smaller Gram matrix, of size R = min(N, D+1), and decompose it once,
  Q diag(s) Q' with Q orthogonal. Its regularised inverse is then
  Q diag(1 / (s + l)) Q' for any l, and for both forms

    W = left diag(1 / (s + l)) right,
      left = Q,    right = Q'X'Y   if N >= D+1,
      left = X'Q,  right = Q'Y     otherwise.
  """

  mean: Float[np.ndarray, "D"]
  std: Float[np.ndarray, "D"]
  left: Float[np.ndarray, "D+1 R"]
  eigenvalues: Float[np.ndarray, "R"]
  right: Float[np.ndarray, "R classes"]

  @classmethod
  def fit(
    cls,
    features: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, "N"],
    num_classes: int,
  ) -> "RidgePath":
    """Decomposes the k-shot training set.

    Raises:
      ValueError: for a label outside 0 ... num_classes - 1.
    """
    _check_labels("labels", labels, num_classes)
    features = np.asarray(features, np.float64)
    mean, std = features.mean(axis=0), features.std(axis=0) + _STD_FLOOR
    x = _whiten(features, mean, std)
    y = 2.0 * np.eye(num_classes)[labels] - 1.0
    primal = x.shape[0] >= x.shape[1]
    eigenvalues, q = np.linalg.eigh(x.T @ x if primal else x @ x.T)
    left, right = (q, q.T @ (x.T @ y)) if primal else (x.T @ q, q.T @ y)
    return cls(mean, std, left, eigenvalues, right)

  def weights(self, penalty: float) -> Float[np.ndarray, "D+1 classes"]:
    """The ridge solution; the last row belongs to the constant column."""
    return (self.left / (self.eigenvalues + penalty)) @ self.right

  def accuracies(
    self,
    features: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, "N"],
    penalties: Sequence[float],
  ) -> Float[np.ndarray, "penalties"]:
    """Share of images whose highest score is their label; scores float32."""
    weights = [self.weights(l2).astype(np.float32) for l2 in penalties]
    correct = np.zeros(len(penalties))
    for start in range(0, len(labels), _ROWS):
      rows = slice(start, start + _ROWS)
      x = _whiten(features[rows], self.mean, self.std).astype(np.float32)
      for i, w in enumerate(weights):
        correct[i] += np.sum(np.argmax(x @ w, axis=1) == labels[rows])
    return correct / len(labels)


def fewshot_accuracies(
  train_features: Float[np.ndarray, "N D"],
  train_labels: Int[np.ndarray, "N"],
  test_features: Float[np.ndarray, "M D"],
  test_labels: Int[np.ndarray, "M"],
  num_classes: int,
  penalties: Sequence[float] = PENALTIES,
) -> Float[np.ndarray, "penalties"]:
  """Test accuracy in [0, 1] for every penalty, trained on all of `train_*`."""
  path = RidgePath.fit(train_features, train_labels, num_classes)
  return path.accuracies(test_features, test_labels, penalties)


def best_penalty(
  accuracies: Mapping[str, Float[np.ndarray, "penalties"]],
) -> int:
  """Index of the penalty with the best mean rank over the data sets.

  One penalty for all data sets, so that it is not fitted to any single one.
  Ranks are those of the authors' code: equal accuracies of a data set take
  different ranks, in the order in which NumPy's default sort leaves them as
  float32, which may depend on the processor. Among equal mean ranks the smaller
  penalty is taken.
  """
  ranks = [
    np.argsort(np.argsort(np.asarray(values, np.float32)))
    for values in accuracies.values()
  ]
  return int(np.argmax(np.mean(ranks, axis=0)))


@dataclasses.dataclass(frozen=True)
class FewshotTask:
  """One data set to transfer to.

  Attributes:
    name: part of the metric names.
    train_labels: (N,) integer labels of the training images.
    make_batches: from training indices to batches of those images, in order.
    test_batches: batches of the test images, iterable any number of times.
    num_classes: labels are 0 ... num_classes - 1.

  A batch is this process's share: "image" (b, ...), "label" one-hot
  (b, classes), "mask" (b,) 1 for images and 0 for padding. The shares of all
  processes, in their order, are the images in order.
  """

  name: str
  train_labels: Int[np.ndarray, "N"]
  make_batches: Callable[[Int[np.ndarray, "n"]], Iterable[Batch]]
  test_batches: Iterable[Batch]
  num_classes: int


class FewshotEvaluator:
  """Few-shot accuracy of a model's features on one or more data sets."""

  def __init__(
    self,
    name: str,
    features_fn: Callable[[Any, Any], Any],
    tasks: Sequence[FewshotTask],
    shots: Sequence[int] = (1, 5, 10, 25),
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
  ):
    """Checks the tasks and reports classes with too few images.

    Args:
      name: prefix of the metric names.
      features_fn: (params, images of a batch) -> (b, D) features of these
        images, in their order.
      tasks: the data sets; they share one penalty for each number of shots.
      shots: numbers of training images per class.
      seed: chooses the images.
      penalties: the ridge penalties tried, increasing.

    Raises:
      ValueError: no task, shots below 1, penalties not above 0, or a label
        outside its range.
    """
    _check(tasks, shots, penalties)
    self._name = name
    self._features_fn = features_fn
    self._tasks = tuple(tasks)
    self._shots = tuple(shots)
    self._seed = seed
    self._penalties = tuple(penalties)
    for task in self._tasks:
      _report_small_classes(task, max(self._shots))

  def run(self, params: Any) -> Iterator[tuple[str, float]]:
    """Yields NAME/TASK/Kshot accuracies and NAME/Kshot_penalty chosen."""
    results = {
      task.name: self._accuracies(params, task) for task in self._tasks
    }
    for shots in self._shots:
      by_task = {name: result[shots] for name, result in results.items()}
      best = best_penalty(by_task)
      for name, accuracies in by_task.items():
        yield f"{self._name}/{name}/{shots}shot", float(accuracies[best])
      yield f"{self._name}/{shots}shot_penalty", self._penalties[best]

  def _accuracies(
    self, params: Any, task: FewshotTask
  ) -> dict[int, Float[np.ndarray, "penalties"]]:
    """Accuracies by number of shots; every image passes the model once."""
    labels = np.asarray(task.train_labels)
    pool = select_shots(labels, task.num_classes, max(self._shots), self._seed)
    train, _ = self._features(params, task.make_batches(pool))
    test = self._features(params, task.test_batches)
    row_of = dict(zip(pool.tolist(), range(len(pool)), strict=True))
    results = {}
    for shots in self._shots:
      chosen = select_shots(labels, task.num_classes, shots, self._seed)
      rows = [row_of[index] for index in chosen.tolist()]
      results[shots] = fewshot_accuracies(
        train[rows], labels[chosen], *test, task.num_classes, self._penalties
      )
    return results

  def _features(
    self, params: Any, batches: Iterable[Batch]
  ) -> tuple[Float[np.ndarray, "N D"], Int[np.ndarray, "N"]]:
    """Features and labels of all processes' images, without padding."""
    features, labels = [], []
    for batch in batches:
      real = _gather(batch["mask"]) > 0
      outputs = _gather(self._features_fn(params, batch["image"]))
      features.append(np.asarray(outputs, np.float32)[real])
      labels.append(np.argmax(_gather(batch["label"]), axis=-1)[real])
    return np.concatenate(features), np.concatenate(labels)


def _whiten(
  features: Float[np.ndarray, "N D"],
  mean: Float[np.ndarray, "D"],
  std: Float[np.ndarray, "D"],
) -> Float[np.ndarray, "N D+1"]:
  constant = np.full((features.shape[0], 1), BIAS)
  return np.concatenate([(features - mean) / std, constant], axis=1)


def _gather(array: Any) -> np.ndarray:
  """Every process's rows in process order."""
  if jax.process_count() == 1:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def _check(
  tasks: Sequence[FewshotTask], shots: Sequence[int], penalties: Sequence[float]
) -> None:
  if not tasks:
    raise ValueError("tasks is empty: give at least one data set.")
  if not shots or min(shots) < 1:
    raise ValueError(
      f"shots={tuple(shots)}: give one or more numbers of images per class, "
      "each at least 1."
    )
  if not penalties or min(penalties) <= 0:
    raise ValueError(
      f"penalties={tuple(penalties)}: give one or more numbers above 0."
    )
  for task in tasks:
    _check_labels(f"{task.name}: labels", task.train_labels, task.num_classes)


def _check_labels(
  where: str, labels: Int[np.ndarray, "N"], num_classes: int
) -> None:
  low, high = np.min(labels), np.max(labels)
  if low < 0 or high >= num_classes:
    raise ValueError(
      f"{where} run from {low} to {high}, num_classes={num_classes} allows 0 "
      f"to {num_classes - 1}. Correct num_classes."
    )


def _report_small_classes(task: FewshotTask, shots: int) -> None:
  counts = np.bincount(task.train_labels, minlength=task.num_classes)
  small = np.flatnonzero(counts < shots)
  if small.size:
    logging.warning(
      "%s: %d of %d classes have fewer than %d training images and give all "
      "they have; the first is class %d with %d.",
      task.name,
      small.size,
      task.num_classes,
      shots,
      small[0],
      counts[small[0]],
    )
