"""Accuracy and loss over a data set."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp


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
  ):
    """Makes an evaluator; data is only read by `run`.

    Args:
      name: prefix of the metric names.
      predict: maps (variables, images) to logits (B, classes).
      batches: returns an iterable of the global batches of one pass, with
        `image`, `label` (B, classes) and `mask` (B,), which is 0 for padding.
      loss: maps (logits, labels) to losses (B,).
    """
    self.name = name
    self._batches = batches

    @jax.jit
    def sums(variables, batch):
      logits = predict(variables, batch["image"])
      labels, mask = batch["label"], batch["mask"]
      best = jnp.argmax(logits, axis=-1)[:, None]
      correct = jnp.take_along_axis(labels, best, axis=-1)[:, 0] > 0
      losses = loss(logits, labels)
      return jnp.stack(
        [jnp.sum(mask * correct), jnp.sum(mask * losses), mask.sum()]
      )

    self._sums = sums

  def run(self, variables: Any, step: int = 0) -> Iterator[tuple[str, float]]:
    """Yields NAME/accuracy, NAME/loss and NAME/examples, their number.

    Args:
      variables: for `predict`.
      step: of the parameters; not used.
    """
    # Fetched batch by batch, so that few batches are in flight on the devices.
    batches = self._batches()
    sums = sum(jax.device_get(self._sums(variables, b)) for b in batches)
    correct, loss, count = sums
    yield f"{self.name}/accuracy", float(correct / count)
    yield f"{self.name}/loss", float(loss / count)
    yield f"{self.name}/examples", float(count)
