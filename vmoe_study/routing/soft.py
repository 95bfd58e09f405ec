"""Soft MoE: every slot is a mixture of all tokens (2308.00951)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vmoe_study.routing.arguments import float32
from vmoe_study.routing.plan import DensePlan


def slot_logits(
  x: Float[ArrayLike, "G S D"],
  mu: Float[ArrayLike, "D E C"],
  scale: Float[ArrayLike, ""],
) -> Float[Array, "G S E C"]:
  """Scaled cosine similarity of tokens and learned slots, float32."""
  return jnp.einsum(
    "GSD,DEC->GSEC",
    _normalize(float32("x", x, "G S D"), axis=2),
    float32("scale", scale, "")
    * _normalize(float32("mu", mu, "D E C"), axis=0),
    precision=jax.lax.Precision.HIGHEST,
  )


def soft_choice(logits: Float[ArrayLike, "G S E C"]) -> DensePlan:
  """Dispatch: softmax over tokens per slot. Combine: over slots per token."""
  logits = float32("logits", logits, "G S E C")
  slots = logits.reshape(*logits.shape[:2], -1)
  return DensePlan(
    dispatch_weights=jax.nn.softmax(logits, axis=1),
    combine_weights=jax.nn.softmax(slots, axis=2).reshape(logits.shape),
  )


def _normalize(x, axis):
  return x * jax.lax.rsqrt(jnp.sum(x**2, axis=axis, keepdims=True) + 1e-6)
