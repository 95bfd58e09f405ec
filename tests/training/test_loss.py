"""Losses against NumPy in float64."""

import jax.numpy as jnp
import numpy as np

from vmoe_study.routing.balance import RoutingAux
from vmoe_study.training import loss

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5)).astype(np.float32) * 20
LABELS = RNG.uniform(size=(6, 5)).astype(np.float32)


def test_softmax_xent():
  logits = LOGITS.astype(np.float64)
  logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  expected = -(LABELS * logp).sum(1)
  np.testing.assert_allclose(
    loss.softmax_xent(LOGITS, LABELS), expected, rtol=1e-5
  )


def test_sigmoid_xent_sums_over_classes_and_is_stable():
  p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
  expected = -(LABELS * np.log(p) + (1 - LABELS) * np.log1p(-p)).sum(1)
  np.testing.assert_allclose(
    loss.sigmoid_xent(LOGITS, LABELS), expected, rtol=1e-4
  )
  huge = loss.sigmoid_xent(jnp.full((1, 2), 1e4), jnp.ones((1, 2)))
  assert np.isfinite(huge).all()


def make_aux(scale):
  return RoutingAux(
    auxiliary_loss=jnp.array([1.0, 3.0]) * scale,
    losses={"importance_loss": jnp.array([1.0, 2.0])},
    tokens_per_expert=jnp.array([[1.0, 3.0], [2.0, 6.0]]),
    unprocessed=jnp.array([0.0, 0.5]),
  )


def test_auxiliary_loss_is_the_mean_over_groups_summed_over_layers():
  aux = {"a": make_aux(1.0), "b": make_aux(2.0)}
  assert float(loss.auxiliary_loss(aux)) == 2.0 + 4.0
  assert float(loss.auxiliary_loss({})) == 0.0


def test_routing_metrics():
  metrics = loss.routing_metrics({"block": make_aux(1.0)})
  load = metrics.pop("routing/block/load")
  np.testing.assert_array_equal(load, [0.5, 1.5])
  assert {k: float(v) for k, v in metrics.items()} == {
    "routing/block/importance_loss": 1.5,
    "routing/block/unprocessed": 0.25,
    "routing/block/max_load": 1.5,
    "routing/block/min_load": 0.5,
  }


def test_precision_at_1_of_single_smoothed_several_and_mixed_labels():
  logits = np.array([[0.1, 2.0, 0.3]] * 8, np.float32)  # Class 1.
  labels = {
    (0, 1, 0): 1,
    (1, 0, 0): 0,
    (0.05, 0.9, 0.05): 1,
    (0, 1, 1): 1,
    (1, 0, 1): 0,
    (0.3, 0.7, 0): 1,  # Mixup: the image with the larger weight.
    (0.7, 0.3, 0): 0,
    (0, 0, 0): 0,
  }
  found = loss.precision_at_1(logits, jnp.array(list(labels), jnp.float32))
  assert float(found) == sum(labels.values()) / len(labels)
