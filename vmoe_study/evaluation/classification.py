"""Accuracy and loss over a data set, every example counted once."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp


class ClassificationEvaluator:
  """Precision at 1 (accuracy, if images have one label) and mean loss."""

  def __init__(
    self,
    name: str,
    predict: Callable[[Any, jax.Array], jax.Array],
    batches: Callable[[], Iterable[dict[str, jax.Array]]],
    loss: Callable[[jax.Array, jax.Array], jax.Array],
  ):
    """Prepares an evaluator; nothing is read before `run`.

    Args:
      name: prefix of the metrics.
      predict: (params, images) to logits (B, classes).
      batches: makes one pass over global batches with `image`, `label`
        (B, classes) and `mask` (B,), 0 for what does not count.
      loss: (logits, labels) to (B,).
    """
    self.name = name
    self._batches = batches

    @jax.jit
    def sums(params, batch):
      logits = predict(params, batch["image"])
      labels, mask = batch["label"], batch["mask"]
      best = jnp.argmax(logits, axis=-1)[:, None]
      correct = jnp.take_along_axis(labels, best, axis=-1)[:, 0] > 0
      losses = loss(logits, labels)
      return jnp.stack(
        [jnp.sum(mask * correct), jnp.sum(mask * losses), mask.sum()]
      )

    self._sums = sums

  def run(self, params: Any) -> Iterator[tuple[str, float]]:
    """Yields accuracy, loss and the number of examples."""
    # Fetched batch by batch: see `train.loop.STEPS_AHEAD`.
    batches = self._batches()
    sums = sum(jax.device_get(self._sums(params, b)) for b in batches)
    correct, loss, count = sums
    yield f"{self.name}/accuracy", float(correct / count)
    yield f"{self.name}/loss", float(loss / count)
    yield f"{self.name}/examples", float(count)
