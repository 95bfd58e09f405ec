"""Accuracy and loss over a data set, and the predictions for every image."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from vmoe_study.evaluation.outcomes import outcomes
from vmoe_study.evaluation.result import Classification


class ClassificationEvaluator:
  """Precision at 1 and mean loss over all examples of a data set.

  Precision at 1 is the fraction of the examples whose highest logit belongs to
  one of their labels: the accuracy, if every example has one label.
  """

  def __init__(
    self,
    name: str,
    predict: Callable[[Any, jax.Array], jax.Array],
    batches: Callable[[], Iterable[dict[str, jax.Array]]],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    probabilities: Callable[[jax.Array], jax.Array],
    class_names: Sequence[str],
    keep_scores: bool = False,
  ):
    """Makes an evaluator; data is only read by `run` and `predict_all`.

    Args:
      name: prefix of the metric names.
      predict: maps (variables, images) to logits (B, classes).
      batches: returns an iterable of the global batches of one pass, with
        `image`, `label` (B, classes), `mask` (B,), which is 0 for padding, and
        `index` (B,), the places in the data set.
      loss: maps (logits, labels) to losses (B,).
      probabilities: maps logits to probabilities of the same shape.
      class_names: names of all classes.
      keep_scores: whether `predict_all` keeps the logits of all images, to rank
        the images for every class.
    """
    self.name = name
    self._batches = batches
    self._class_names = class_names

    def compared(variables, batch):
      logits = predict(variables, batch["image"])
      return logits, outcomes(logits, batch["label"], loss, probabilities)

    @jax.jit
    def sums(variables, batch):
      _, found = compared(variables, batch)
      mask = batch["mask"]
      return jnp.stack(
        [jnp.sum(mask * found.correct), jnp.sum(mask * found.loss), mask.sum()]
      )

    @jax.jit
    def rows(variables, batch):
      logits, found = compared(variables, batch)
      rows = {"outcomes": found, "index": batch["index"], "mask": batch["mask"]}
      if keep_scores:
        rows |= {"scores": logits, "targets": batch["label"] > 0}
      return rows

    self._sums, self._rows = sums, rows

  def run(self, variables: Any, step: int = 0) -> Iterator[tuple[str, float]]:
    """Yields NAME/accuracy, NAME/loss and NAME/examples (a count).

    Args:
      variables: for `predict`.
      step: step of the parameters; not used.
    """
    # Fetched batch by batch, so that few batches are in flight on the devices.
    batches = self._batches()
    sums = sum(jax.device_get(self._sums(variables, b)) for b in batches)
    correct, loss, count = sums
    yield f"{self.name}/accuracy", float(correct / count)
    yield f"{self.name}/loss", float(loss / count)
    yield f"{self.name}/examples", float(count)

  def predict_all(self, variables: Any) -> Classification:
    """Predictions for every image; all processes get the same result.

    Args:
      variables: for `predict`.
    """
    parts = [_gather_rows(self._rows(variables, b)) for b in self._batches()]
    rows = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    order = np.argsort(rows["index"], kind="stable")
    order = order[rows["mask"][order] > 0]
    rows = jax.tree.map(lambda array: array[order], rows)
    return Classification(
      self.name,
      self._class_names,
      rows["index"],
      rows["outcomes"],
      rows.get("scores"),
      rows.get("targets"),
    )


def _gather_rows(tree: Any) -> Any:
  """Gathers the rows of all processes."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)
