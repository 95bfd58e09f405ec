"""Classification losses and what routers add to them."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vmoe_study.routing.balance import RoutingAux


def softmax_xent(
  logits: Float[Array, "B classes"], labels: Float[Array, "B classes"]
) -> Float[Array, "B"]:
  """Cross-entropy of one distribution over classes per image, in nats."""
  return -jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1)


def sigmoid_xent(
  logits: Float[Array, "B classes"], labels: Float[Array, "B classes"]
) -> Float[Array, "B"]:
  """Binary cross-entropies summed over classes, in nats; multi-label."""
  log_yes = jax.nn.log_sigmoid(logits)
  log_no = jax.nn.log_sigmoid(-logits)
  return -jnp.sum(labels * log_yes + (1.0 - labels) * log_no, axis=-1)


LOSSES: dict[str, Callable] = {
  "softmax_xent": softmax_xent,
  "sigmoid_xent": sigmoid_xent,
}


def auxiliary_loss(aux: Mapping[str, RoutingAux]) -> Float[Array, ""]:
  """Weighted router losses: mean over groups, summed over layers."""
  return sum(
    (layer.auxiliary_loss.mean() for layer in aux.values()), jnp.zeros(())
  )


def routing_metrics(
  aux: Mapping[str, RoutingAux],
) -> dict[str, Float[Array, "..."]]:
  """Health of every MoE layer, by "routing/LAYER/NAME".

  unprocessed: share of tokens that no expert takes. load: tokens of every
  expert over the mean of all; max_load, min_load: of the busiest and the
  least busy. And every router loss, unweighted.
  """
  metrics = {}
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
