"""Soft MoE: every slot is a weighted mean of all tokens (arXiv:2308.00951)."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vmoe_study.routing.arguments import as_float32
from vmoe_study.routing.plan import DensePlan


def slot_logits(
  x: Float[ArrayLike, "G S D"],
  mu: Float[ArrayLike, "D E C"],
  scale: Float[ArrayLike, ""],
) -> Float[Array, "G S E C"]:
  """Scaled cosine similarity of tokens and slots (arXiv:2308.00951).

  Args:
    x: tokens of any float dtype.
    mu: learned parameters of the slots.
    scale: learned factor.

  Returns:
    Logits, float32.

  Raises:
    ValueError: if the number of axes of an argument differs.
  """
  return jnp.einsum(
    "GSD,DEC->GSEC",
    _normalize(as_float32("x", x, "G S D"), axis=2),
    as_float32("scale", scale, "")
    * _normalize(as_float32("mu", mu, "D E C"), axis=0),
    precision=jax.lax.Precision.HIGHEST,
  )


def soft_choice(
  logits: Float[ArrayLike, "G S E C"],
  *,
  uniform_dispatch: bool = False,
  uniform_combine: bool = False,
) -> DensePlan:
  """Dispatches by softmax over tokens, combines by softmax over all slots.

  Args:
    logits: logit of every token and slot (arXiv:2308.00951), any float dtype.
    uniform_dispatch: whether every slot is the mean of all tokens instead. This
      and `uniform_combine` are ablations of the paper (Appendix A).
    uniform_combine: whether every token is the mean of all slots instead.

  Raises:
    ValueError: if the logits do not have four axes.

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.soft import soft_choice
    >>> plan = soft_choice(jnp.zeros((1, 4, 2, 1)))  # 4 tokens, 2 slots
    >>> plan.dispatch_tensor()[0, 0, :, 0].tolist()
    [0.25, 0.25]
    >>> plan.combine_tensor()[0, 0, :, 0].tolist()
    [0.5, 0.5]
  """
  logits_GSEC = as_float32("logits", logits, "G S E C")
  logits_GSN = logits_GSEC.reshape(*logits_GSEC.shape[:2], -1)  # N = E * C
  dispatch_GSEC = jax.nn.softmax(
    jnp.zeros_like(logits_GSEC) if uniform_dispatch else logits_GSEC, axis=1
  )
  combine_GSN = jax.nn.softmax(
    jnp.zeros_like(logits_GSN) if uniform_combine else logits_GSN, axis=2
  )
  return DensePlan(dispatch_GSEC, combine_GSN.reshape(logits_GSEC.shape))


def _normalize(x, axis):
  return x * jax.lax.rsqrt(jnp.sum(x**2, axis=axis, keepdims=True) + 1e-6)
