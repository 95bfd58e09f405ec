"""Classification losses, auxiliary losses and metrics of the routers."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vmoe_study.routing.balance import RoutingAux


def softmax_xent(
  logits: Float[Array, "B classes"], labels: Float[Array, "B classes"]
) -> Float[Array, "B"]:
  """Cross-entropy of a softmax over classes, in nats.

  Args:
    logits: logits of every image.
    labels: target distribution over classes.
  """
  return -jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1)


def sigmoid_xent(
  logits: Float[Array, "B classes"], labels: Float[Array, "B classes"]
) -> Float[Array, "B"]:
  """Binary cross-entropies summed over classes, in nats, for multiple labels.

  Args:
    logits: logits of every image.
    labels: probability of each class.
  """
  log_yes = jax.nn.log_sigmoid(logits)
  log_no = jax.nn.log_sigmoid(-logits)
  return -jnp.sum(labels * log_yes + (1.0 - labels) * log_no, axis=-1)


def precision_at_1(
  logits: Float[Array, "B classes"], labels: Float[Array, "B classes"]
) -> Float[Array, ""]:
  """The fraction of images whose highest logit is at a largest target.

  The largest target is the class of a single label, smoothed or not; any of
  several labels; and under mixup the class of the image with the larger weight.

  Args:
    logits: logits of every image.
    labels: target of each class; an image without labels counts as wrong.
  """
  found = jnp.argmax(logits, axis=-1)[:, None]
  target = jnp.take_along_axis(labels, found, axis=-1)[:, 0]
  largest = labels.max(axis=-1)
  return jnp.mean((target == largest) & (largest > 0))


LOSSES: dict[str, Callable] = {
  "softmax_xent": softmax_xent,
  "sigmoid_xent": sigmoid_xent,
}


def auxiliary_loss(aux: Mapping[str, RoutingAux]) -> Float[Array, ""]:
  """Weighted router losses, averaged over groups and summed over layers.

  Args:
    aux: aux of every MoE layer, by name.
  """
  return sum(
    (layer.auxiliary_loss.mean() for layer in aux.values()), jnp.zeros(())
  )


def router_statistics(
  aux: Mapping[str, RoutingAux],
) -> dict[str, dict[str, Float[Array, "..."]]]:
  """Statistics of every layer for the updates of router states.

  Args:
    aux: aux of every MoE layer, by name.

  Returns:
    Statistics by layer and name, averaged over groups; layers without
    statistics are left out.
  """
  return {
    name: {key: values.mean(axis=0) for key, values in layer.statistics.items()}
    for name, layer in aux.items()
    if layer.statistics
  }


def routing_metrics(
  aux: Mapping[str, RoutingAux],
) -> dict[str, Float[Array, "..."]]:
  """Losses and load of every MoE layer, as metrics.

  Args:
    aux: aux of every MoE layer, by name.

  Returns:
    Metrics by "routing/LAYER/NAME", where NAME is a router loss (unweighted,
    averaged over groups), "unprocessed" (fraction of the tokens that no expert
    processes), "load" (E values: tokens per expert, divided by the mean over
    experts), "max_load" or "min_load".
  """
  metrics: dict[str, Array] = {}
  for name, layer in aux.items():
    load = layer.tokens_per_expert.sum(axis=0)
    load = load / jnp.maximum(load.mean(), 1e-9)
    values = {key: loss.mean() for key, loss in layer.losses.items()}
    values["unprocessed"] = layer.unprocessed.mean()
    values["load"] = load
    values["max_load"] = load.max()
    values["min_load"] = load.min()
    metrics |= {f"routing/{name}/{key}": v for key, v in values.items()}
  return metrics
