"""Every example counts once, independent of padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_study.evaluation.classification import ClassificationEvaluator
from vmoe_study.training.loss import softmax_xent

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(11, 5)).astype(np.float32)
LABELS = np.eye(5, dtype=np.float32)[RNG.integers(0, 5, 11)]
LABELS[3] = [1, 1, 0, 0, 1]  # An image with several labels.


def batches(size):
  for start in range(0, 11, size):
    image, label = LOGITS[start : start + size], LABELS[start : start + size]
    padding = ((0, size - len(image)), (0, 0))
    mask = np.pad(np.ones(len(image), np.float32), padding[0])
    yield {
      "image": jnp.pad(image, padding, constant_values=7.0),
      "label": jnp.pad(label, padding, constant_values=1.0),
      "mask": jnp.asarray(mask),
      "index": jnp.arange(start, start + size),
    }


def test_metrics_do_not_depend_on_the_batch_size():
  correct = LABELS[np.arange(11), LOGITS.argmax(1)] > 0
  expected = {
    "test/accuracy": correct.mean(),
    "test/loss": np.mean(softmax_xent(LOGITS, LABELS)),
    "test/examples": 11,
  }
  for size in (4, 16):
    evaluator = ClassificationEvaluator(
      "test",
      lambda _, image: image,
      functools.partial(batches, size),
      softmax_xent,
      jax.nn.softmax,
      list("abcde"),
    )
    found = dict(evaluator.run({}))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_allclose(found[name], value, rtol=1e-6)
