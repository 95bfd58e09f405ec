"""k-shot linear transfer: ridge regression on frozen features.

A ridge regression on k images per class predicts one-hot targets, scaled to
{-1, +1}, from the features before the head, for each of thirty penalties. Its
accuracy is measured on the test images, as in the V-MoE and Soft MoE papers
(arXiv:2106.05974, arXiv:2308.00951), which report ImageNet 10-shot.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import Bool, Float, Int

from vmoe_study.evaluation.draws import DrawRule, generator_seed
from vmoe_study.options import check_least

PENALTIES = tuple(2.0**power for power in range(-10, 20))
BIAS = 100.0  # Constant column; large, so that the bias is hardly penalised.
_STD_FLOOR = 1e-5
_ROWS = 4096  # Test images scored at a time, to limit memory.

Batch = Mapping[str, Any]


def select_shots(
  labels: Int[np.ndarray, "N"], num_classes: int, shots: int, seed: int
) -> Int[np.ndarray, "n"]:
  """Indices of `shots` random images of each class, ordered by class.

  Args:
    labels: labels of all images, in [0, num_classes).
    num_classes: number of classes.
    shots: images per class; all images of a class that has fewer.
    seed: seed of the selection. For the same seed, fewer shots select a subset
      of the images that more shots select.
  """
  labels = np.asarray(labels)
  rng = np.random.default_rng(seed)
  orders = [
    rng.permutation(np.flatnonzero(labels == c)) for c in range(num_classes)
  ]
  return np.concatenate([order[:shots] for order in orders])


@dataclasses.dataclass(frozen=True)
class RidgePath:
  """Ridge regression for all penalties from one eigendecomposition, float64.

  Let X (N, D+1) be the whitened features with a constant column, Y (N, classes)
  the targets, and l the penalty.

  1. The solution has two equal forms,
     W = (X'X + l I)^-1 X'Y = X' (XX' + l I)^-1 Y.
  2. Decompose the smaller of X'X and XX', of size R = min(N, D+1), once into
     Q diag(s) Q' with Q orthogonal. With the penalty its inverse is
     Q diag(1 / (s + l)) Q' for every l.
  3. Hence W = left diag(1 / (s + l)) right, with
     left = Q,    right = Q'X'Y   if N >= D+1,
     left = X'Q,  right = Q'Y     otherwise.

  Attributes:
    mean: mean of the training features.
    std: standard deviation of the training features, plus 1e-5.
    left: see above.
    eigenvalues: s.
    right: see above.
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
    """Fits the k-shot training set.

    Args:
      features: features of any float dtype.
      labels: labels in [0, num_classes).
      num_classes: number of classes.

    Raises:
      ValueError: for a label out of range.
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
    """W, float64; the last row belongs to the constant column."""
    return (self.left / (self.eigenvalues + penalty)) @ self.right

  def accuracies(
    self,
    features: Float[np.ndarray, "N D"],
    labels: Int[np.ndarray, "N"],
    penalties: Sequence[float],
  ) -> Float[np.ndarray, "penalties"]:
    """Fraction of the images whose highest score is that of their label.

    Args:
      features: features of the images, any float dtype.
      labels: labels in [0, num_classes).
      penalties: each gives one accuracy. Scores are computed in float32.
    """
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
  """Test accuracies in [0, 1] after training on all of `train_*`.

  Args:
    train_features: features of any float dtype.
    train_labels: labels in [0, num_classes).
    test_features: features of any float dtype.
    test_labels: labels in [0, num_classes).
    num_classes: number of classes.
    penalties: each gives one accuracy.

  Raises:
    ValueError: for a training label out of range.
  """
  path = RidgePath.fit(train_features, train_labels, num_classes)
  return path.accuracies(test_features, test_labels, penalties)


def best_penalty(
  accuracies: Mapping[str, Float[np.ndarray, "penalties"]],
) -> int:
  """Index of the penalty with the best mean rank over all data sets.

  All data sets share the penalty, so that it is not fitted to a single one.
  Ranks are those of the public V-MoE code: equal accuracies of a data set get
  different ranks, in the order of NumPy's default sort of float32 values, which
  may depend on the processor. Of equal mean ranks, the smallest penalty wins.

  Args:
    accuracies: accuracy of every penalty, in ascending order of penalties, by
      data set.
  """
  ranks = [
    np.argsort(np.argsort(np.asarray(values, np.float32)))
    for values in accuracies.values()
  ]
  return int(np.argmax(np.mean(ranks, axis=0)))


@dataclasses.dataclass(frozen=True)
class FewshotTask:
  """A data set for few-shot transfer.

  A batch holds this process's share of the images: "image" (b, ...), "label"
  one-hot (b, classes) and "mask" (b,), which is 0 for padding and for skipped
  damaged images, which leave their class with fewer shots. The shares of all
  processes, concatenated in the order of processes, are the images in order.

  Attributes:
    name: part of the metric names.
    train_labels: labels of the training images.
    make_batches: maps indices of training images to batches of these images, in
      order.
    test_batches: batches of the test images; can be iterated repeatedly.
    num_classes: labels are in [0, num_classes).
  """

  name: str
  train_labels: Int[np.ndarray, "N"]
  make_batches: Callable[[Int[np.ndarray, "n"]], Iterable[Batch]]
  test_batches: Iterable[Batch]
  num_classes: int


class FewshotEvaluator:
  """Few-shot accuracy of a model's features on several data sets.

  With several draws, each is a separate evaluation with its own penalty; the
  metrics are means over draws, and the standard deviation of the accuracies.
  """

  def __init__(
    self,
    name: str,
    features_fn: Callable[[Any, Any], Any],
    tasks: Sequence[FewshotTask],
    shots: Sequence[int] = (1, 5, 10, 25),
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
    draws: int = 1,
    draw_rule: DrawRule = "seed",
  ):
    """Checks the tasks and logs a warning for classes with too few images.

    Args:
      name: prefix of the metric names.
      features_fn: maps (variables, images of a batch) to features (b, D).
      tasks: the data sets; they share one penalty per number of shots.
      shots: numbers of training images per class.
      seed: seed of the selection of training images.
      penalties: candidate penalties, ascending.
      draws: number of selections of training images to average over.
      draw_rule: how a draw's generator is seeded, see `evaluation.draws`.

    Raises:
      ValueError: without tasks or draws, for shots below 1, penalties that are
        not above 0, or labels out of range.
    """
    _check(tasks, shots, penalties)
    check_least("draws", draws, 1)
    self._name = name
    self._features_fn = features_fn
    self._tasks = tuple(tasks)
    self._shots = tuple(shots)
    self._seed = seed
    self._penalties = tuple(penalties)
    self._draws, self._draw_rule = draws, draw_rule
    for task in self._tasks:
      _report_small_classes(task, max(self._shots))

  def run(self, variables: Any, step: int = 0) -> Iterator[tuple[str, float]]:
    """Yields accuracies NAME/TASK/Kshot and the penalties NAME/Kshot_penalty.

    With several draws also NAME/TASK/Kshot_std, the standard deviation over
    draws; the penalty is their geometric mean.

    Args:
      variables: for `features_fn`.
      step: step of the parameters, for draws that depend on it.
    """
    seeds = [
      generator_seed(self._draw_rule, self._seed, draw, step)
      for draw in range(self._draws)
    ]
    results = {
      t.name: self._accuracies(variables, t, seeds) for t in self._tasks
    }
    for shots in self._shots:
      chosen: dict[str, list[float]] = {name: [] for name in results}
      best = []
      for seed in seeds:
        by_task = {name: found[seed, shots] for name, found in results.items()}
        best.append(best_penalty(by_task))
        for name, accuracies in by_task.items():
          chosen[name].append(accuracies[best[-1]])
      for name, accuracies in chosen.items():
        yield f"{self._name}/{name}/{shots}shot", float(np.mean(accuracies))
        if self._draws > 1:
          spread = float(np.std(accuracies, ddof=1))
          yield f"{self._name}/{name}/{shots}shot_std", spread
      powers = np.log2([self._penalties[index] for index in best])
      yield f"{self._name}/{shots}shot_penalty", float(2 ** np.mean(powers))

  def _accuracies(
    self, variables: Any, task: FewshotTask, seeds: Sequence[int]
  ) -> dict[tuple[int, int], Float[np.ndarray, "penalties"]]:
    """Accuracies by (seed, shots). Applies the model once to every image."""
    labels, classes = np.asarray(task.train_labels), task.num_classes
    chosen = {
      (seed, shots): select_shots(labels, classes, shots, seed)
      for seed in seeds
      for shots in self._shots
    }
    # Fewer shots are a part of more shots.
    most = [chosen[seed, max(self._shots)].tolist() for seed in seeds]
    pool = list(dict.fromkeys(itertools.chain(*most)))
    train, _, real = self._features(
      variables, task.make_batches(np.array(pool))
    )
    usable = list(itertools.compress(pool, real))
    row_of = {image: row for row, image in enumerate(usable)}
    test_features, test_labels, _ = self._features(variables, task.test_batches)
    found = {}
    for key, drawn in chosen.items():
      images = drawn[np.isin(drawn, usable)]
      found[key] = fewshot_accuracies(
        train[[row_of[image] for image in images.tolist()]],
        labels[images],
        test_features,
        test_labels,
        classes,
        self._penalties,
      )
    return found

  def _features(
    self, variables: Any, batches: Iterable[Batch]
  ) -> tuple[
    Float[np.ndarray, "N D"], Int[np.ndarray, "N"], Bool[np.ndarray, "R"]
  ]:
    """Features and labels of all processes, without masked images.

    The third array marks these images among the R rows of all batches.
    """
    features, labels, masks = [], [], []
    for batch in batches:
      masks.append(real := _gather(batch["mask"]) > 0)
      outputs = _gather(self._features_fn(variables, batch["image"]))
      features.append(np.asarray(outputs, np.float32)[real])
      labels.append(np.argmax(_gather(batch["label"]), axis=-1)[real])
    return tuple(map(np.concatenate, (features, labels, masks)))


def _whiten(
  features: Float[np.ndarray, "N D"],
  mean: Float[np.ndarray, "D"],
  std: Float[np.ndarray, "D"],
) -> Float[np.ndarray, "N D+1"]:
  constant = np.full((features.shape[0], 1), BIAS)
  return np.concatenate([(features - mean) / std, constant], axis=1)


def _gather(array: Any) -> np.ndarray:
  """Concatenates the rows of all processes in order."""
  if jax.process_count() == 1:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def _check(
  tasks: Sequence[FewshotTask], shots: Sequence[int], penalties: Sequence[float]
) -> None:
  if not tasks:
    raise ValueError("tasks=(): must not be empty. Give a data set or more.")
  if not shots or min(shots) < 1:
    raise ValueError(
      f"shots={tuple(shots)}: must be one or more numbers of images per class, "
      "each at least 1."
    )
  if not penalties or min(penalties) <= 0:
    raise ValueError(
      f"penalties={tuple(penalties)}: must be one or more numbers above 0."
    )
  for task in tasks:
    _check_labels(f"{task.name}: labels", task.train_labels, task.num_classes)


def _check_labels(
  where: str, labels: Int[np.ndarray, "N"], num_classes: int
) -> None:
  low, high = np.min(labels), np.max(labels)
  if low < 0 or high >= num_classes:
    raise ValueError(
      f"{where} from {low} to {high}: must be from 0 to {num_classes - 1}, as "
      f"num_classes={num_classes}. Correct num_classes."
    )


def _report_small_classes(task: FewshotTask, shots: int) -> None:
  counts = np.bincount(task.train_labels, minlength=task.num_classes)
  small = np.flatnonzero(counts < shots)
  if small.size:
    logging.warning(
      "%s: %d of %d classes have fewer than %d training images, all of which "
      "are used; the first is class %d with %d.",
      task.name,
      small.size,
      task.num_classes,
      shots,
      small[0],
      counts[small[0]],
    )
