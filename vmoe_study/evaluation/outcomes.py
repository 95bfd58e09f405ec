"""Predictions for each image, computed on the devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SHOWN_CLASSES = 3  # Most probable classes kept for every image.


class Outcomes(NamedTuple):
  """One value, or row of values, per image.

  Attributes:
    num_labels: int32 (N,), number of classes that an image belongs to.
    label: int32 (N,), the class of an image with one label.
    label_probability: float32 (N,), probability of that class.
    classes: int32 (N, K), the K classes with the highest logits, in order.
    probabilities: float32 (N, K), probabilities of these classes.
    correct: bool (N,), whether the first of these classes is a label of the
      image.
    loss: float32 (N,), loss in nats.
    squared_error: float32 (N,), squared error of the probabilities, summed over
      classes.
  """

  num_labels: Any
  label: Any
  label_probability: Any
  classes: Any
  probabilities: Any
  correct: Any
  loss: Any
  squared_error: Any


def outcomes(
  logits: jax.Array,
  labels: jax.Array,
  loss: Callable[[jax.Array, jax.Array], jax.Array],
  probabilities: Callable[[jax.Array], jax.Array],
) -> Outcomes:
  """Compares logits with labels.

  Args:
    logits: (N, classes).
    labels: float32 (N, classes), 1 for the classes of an image.
    loss: maps (logits, labels) to losses (N,).
    probabilities: maps logits to probabilities of the same shape.
  """
  logits = logits.astype(jnp.float32)
  found = probabilities(logits)
  label = jnp.argmax(labels, axis=-1)
  best = jnp.argmax(logits, axis=-1)
  _, classes = jax.lax.top_k(logits, min(SHOWN_CLASSES, logits.shape[-1]))
  return Outcomes(
    num_labels=jnp.sum(labels > 0, axis=-1),
    label=label,
    label_probability=_take(found, label[:, None])[:, 0],
    classes=classes,
    probabilities=_take(found, classes),
    correct=_take(labels, best[:, None])[:, 0] > 0,
    loss=loss(logits, labels),
    squared_error=jnp.sum(jnp.square(found - labels), axis=-1),
  )


def _take(rows: jax.Array, places: jax.Array) -> jax.Array:
  return jnp.take_along_axis(rows, places, axis=-1)
