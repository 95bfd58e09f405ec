"""Losses that balance experts, and what a routing did, per group.

Both travel from the routers up to the loss as one `RoutingAux`.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vmoe_study.routing.arguments import float32
from vmoe_study.routing.plan import RoutingPlan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RoutingAux:
  """Losses and load of one MoE layer, each per group.

  Attributes:
    auxiliary_loss: the weighted sum of the losses that train the router.
    losses: every loss defined for the router, unweighted, by name.
    tokens_per_expert: slots in use, or for a soft plan the mass in them.
    unprocessed: share of tokens that no expert processes.
  """

  auxiliary_loss: Float[Array, "G"]
  losses: dict[str, Float[Array, "G"]]
  tokens_per_expert: Float[Array, "G E"]
  unprocessed: Float[Array, "G"]


def routing_aux(
  plan: RoutingPlan,
  losses: Mapping[str, Float[ArrayLike, "G"]],
  loss_weights: Mapping[str, float],
) -> RoutingAux:
  """Weighs the losses, by name, and reads the load off the plan."""
  tokens_per_expert = plan.tokens_per_expert()
  total = jnp.zeros_like(tokens_per_expert[:, 0])
  arrays = {name: float32(name, loss, "G") for name, loss in losses.items()}
  for name, loss in arrays.items():
    if loss_weights[name]:
      total += loss_weights[name] * loss
  unprocessed = jnp.mean(plan.experts_per_token() == 0, axis=1)
  return RoutingAux(total, arrays, tokens_per_expert, unprocessed)


def importance_loss(gates: Float[ArrayLike, "G S E"]) -> Float[Array, "G"]:
  """(std / mean)^2 over experts of the gates summed over tokens (1701.06538).

  Args:
    gates: softmax probabilities of the logits without noise.
  """
  return _squared_variation(float32("gates", gates).sum(axis=1))


def load_loss(
  logits: Float[ArrayLike, "G S E"],
  noisy_logits: Float[ArrayLike, "G S E"],
  noise_std: float,
  num_selected_experts: int,
) -> Float[Array, "G"]:
  """(std / mean)^2 over experts of the chance to be chosen (2106.05974, A.2).

  The chance that an expert is among a token's top K if its noise is drawn
  again, averaged over tokens.

  Args:
    logits: without noise.
    noisy_logits: as they were used to choose.
    noise_std: standard deviation of the noise, in logits.
    num_selected_experts: K.

  Raises:
    ValueError: without noise, where the loss is not defined.
  """
  if noise_std <= 0:
    raise ValueError(
      f"noise_std={noise_std}: the load loss needs noise, must be above 0. "
      "Leave the loss out where there is none."
    )
  logits = float32("logits", logits)
  noisy_logits = float32("noisy_logits", noisy_logits)
  threshold = jax.lax.top_k(noisy_logits, num_selected_experts)[0][..., -1:]
  chance = jax.scipy.stats.norm.sf((threshold - logits) / noise_std)
  return _squared_variation(chance.mean(axis=1))


def gshard_loss(gates: Float[ArrayLike, "G S E"]) -> Float[Array, "G"]:
  """E^2 times the mean of (share of first choices) x (mean gate) (2006.16668).

  Args:
    gates: softmax probabilities by which tokens choose.
  """
  gates = float32("gates", gates)
  num_experts = gates.shape[2]
  first = jax.nn.one_hot(
    jnp.argmax(gates, axis=2), num_experts, dtype="float32"
  )
  product = first.mean(axis=1) * gates.mean(axis=1)
  return num_experts**2 * product.mean(axis=1)


def router_z_loss(logits: Float[ArrayLike, "G S E"]) -> Float[Array, "G"]:
  """Mean over tokens of logsumexp(logits)^2 (2202.08906)."""
  logits = float32("logits", logits)
  return jnp.mean(jax.nn.logsumexp(logits, axis=2) ** 2, axis=1)


def _squared_variation(x: Float[Array, "G E"]) -> Float[Array, "G"]:
  return x.var(axis=1) / x.mean(axis=1) ** 2
