"""Balance losses and load statistics of one routed layer, per group.

The router returns them with its plan, as one `RoutingAux`.
"""

import dataclasses
import types
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vmoe_study.routing.arguments import as_float32
from vmoe_study.routing.plan import RoutingPlan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RoutingAux:
  """Losses and load of one MoE layer, per group; all arrays are float32.

  Attributes:
    auxiliary_loss: the weighted sum of the losses, added to the training loss.
    losses: every loss that is defined for the router, unweighted, by name.
    tokens_per_expert: tokens in each expert's slots; under a soft plan, the sum
      of their dispatch weights.
    unprocessed: fraction of the tokens that no expert processes.
    statistics: statistics for the controller's update, by name; leading axis G.
  """

  auxiliary_loss: Float[Array, "G"]
  losses: dict[str, Float[Array, "G"]]
  tokens_per_expert: Float[Array, "G E"]
  unprocessed: Float[Array, "G"]
  statistics: dict[str, Float[Array, "G ..."]] = dataclasses.field(
    default_factory=dict
  )


def routing_aux(
  plan: RoutingPlan,
  losses: Mapping[str, Float[ArrayLike, "G"]],
  loss_weights: Mapping[str, float],
  statistics: Mapping[str, Float[Array, "G ..."]] = types.MappingProxyType({}),
) -> RoutingAux:
  """Sums the weighted losses and counts the tokens of the plan.

  Args:
    plan: routing plan of the layer.
    losses: unweighted losses, by name.
    loss_weights: weight of every loss, by name; names without a loss are
      ignored.
    statistics: statistics for the update of a controller, by name.

  Raises:
    ValueError: for a loss that does not have one axis.
  """
  tokens_per_expert = plan.tokens_per_expert()
  total = jnp.zeros_like(tokens_per_expert[:, 0])
  arrays = {name: as_float32(name, loss, "G") for name, loss in losses.items()}
  for name, loss in arrays.items():
    if loss_weights[name]:
      total += loss_weights[name] * loss
  unprocessed = jnp.mean(plan.experts_per_token() == 0, axis=1)
  return RoutingAux(
    total, arrays, tokens_per_expert, unprocessed, dict(statistics)
  )


def importance_loss(gates: Float[ArrayLike, "G S E"]) -> Float[Array, "G"]:
  """Squared coefficient of variation of the experts' importance.

  The importance of an expert is the sum of its gates over tokens
  (arXiv:1701.06538, Section 4).

  Args:
    gates: softmax probabilities of the logits without noise.

  Returns:
    (std / mean)^2 over experts, float32.

  Raises:
    ValueError: if the gates do not have three axes.
  """
  return _squared_variation(as_float32("gates", gates).sum(axis=1))


def load_loss(
  logits: Float[ArrayLike, "G S E"],
  noisy_logits: Float[ArrayLike, "G S E"],
  noise_std: float,
  num_selected_experts: int,
) -> Float[Array, "G"]:
  """Squared coefficient of variation of the experts' expected load.

  The load of an expert is the probability that it is among a token's top K if
  its noise is drawn again, averaged over tokens (arXiv:2106.05974, A.2).

  Args:
    logits: router logits without noise.
    noisy_logits: the logits by which tokens chose.
    noise_std: standard deviation of the noise.
    num_selected_experts: K.

  Returns:
    (std / mean)^2 over experts, float32.

  Raises:
    ValueError: if `noise_std` is not above 0, or logits do not have three axes.
  """
  if noise_std <= 0:
    raise ValueError(
      f"noise_std={noise_std}: must be above 0 for the load loss, which is "
      "defined by the noise. Leave the loss out, or add noise."
    )
  logits = as_float32("logits", logits)
  noisy_logits = as_float32("noisy_logits", noisy_logits)
  threshold = jax.lax.top_k(noisy_logits, num_selected_experts)[0][..., -1:]
  chance = jax.scipy.stats.norm.sf((threshold - logits) / noise_std)
  return _squared_variation(chance.mean(axis=1))


def gshard_loss(gates: Float[ArrayLike, "G S E"]) -> Float[Array, "G"]:
  """Dot product of the experts' shares of first choices and mean gates.

  Scaled such that perfect balance gives 1 (arXiv:2006.16668, arXiv:2101.03961).

  Args:
    gates: softmax probabilities by which tokens choose.

  Returns:
    E^2 * mean over experts of (share of first choices) * (mean gate), float32.

  Raises:
    ValueError: if the gates do not have three axes.
  """
  gates = as_float32("gates", gates)
  num_experts = gates.shape[2]
  first = jax.nn.one_hot(
    jnp.argmax(gates, axis=2), num_experts, dtype="float32"
  )
  product = first.mean(axis=1) * gates.mean(axis=1)
  return num_experts**2 * product.mean(axis=1)


def router_z_loss(logits: Float[ArrayLike, "G S E"]) -> Float[Array, "G"]:
  """Mean over tokens of logsumexp(logits)^2, float32 (arXiv:2202.08906).

  Raises:
    ValueError: if the logits do not have three axes.
  """
  logits = as_float32("logits", logits)
  return jnp.mean(jax.nn.logsumexp(logits, axis=2) ** 2, axis=1)


def _squared_variation(x: Float[Array, "G E"]) -> Float[Array, "G"]:
  return x.var(axis=1) / x.mean(axis=1) ** 2
