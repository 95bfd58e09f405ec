"""Entropic optimal transport between tokens and experts.

Tokens are rows with mass 1, experts are columns with mass S/E.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vmoe_study.routing.arguments import float32

# While the logits of a group lie within this range R, float32 holds all numbers
# of the scaling form, for any S and up to 1,000 experts:
#
#   e^-R <= u <= E e^2R,  e^-R / E <= v <= e^2R,  e^-2R / E <= any product,
#
# and sums over the kernel are at most S e^R. For the rows of the kernel differ
# by factors of e^R at most, so the entries of u = 1 / (kernel v) do; likewise
# columns and v. Let f = log u, g = log v. The factors by which v changes in an
# update have inverses of mean 1: the mean of g never falls (Jensen) from where
# the first update puts it, -log E or above; nor does the mean of f, from 0. And
# mean f + mean g, the dual objective over S, never exceeds the primal one,
# sum T log(T / kernel) / S <= R.
_SCALING_RANGE = 40.0


@functools.partial(jax.jit, static_argnames="num_iterations")
def sinkhorn(
  logits: Float[ArrayLike, "G S E"], num_iterations: int = 20
) -> Float[Array, "G S E"]:
  """The entropic transport plan of cost -logits, epsilon 1 (1306.0895).

  With potentials f of tokens and g of experts, T = exp(logits + f + g). From
  f = g = 0, one iteration sets g so that columns sum to S/E, then f so that
  rows sum to 1: at the end rows are exact and columns approximate.

  With u = exp(f), v = exp(g) and the kernel exp(logits) an iteration is two
  small matrix-vector products (the scaling form). It is used wherever float32
  holds it; a wider range of logits takes the same steps by logsumexp.

  Args:
    logits: router logits.
    num_iterations: column and row updates.

  Returns:
    T, float32, differentiable through the iterations.

  Raises:
    ValueError: if the logits do not have three axes.
  """
  logits = float32("logits", logits)
  fits = _range_of_groups(logits) <= _SCALING_RANGE
  return jax.lax.cond(
    fits,
    functools.partial(scaling_form, num_iterations=num_iterations),
    functools.partial(log_form, num_iterations=num_iterations),
    logits,
  )


# Matrix units would round float32 to fewer bits.
_product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _range_of_groups(logits):
  logits = jax.lax.stop_gradient(logits)
  return (logits.max(axis=(1, 2)) - logits.min(axis=(1, 2))).max()


def scaling_form(
  logits: Float[ArrayLike, "G S E"], num_iterations: int
) -> Float[Array, "G S E"]:
  """`sinkhorn` for logits whose range float32 holds."""
  logits = float32("logits", logits)
  num_tokens, num_experts = logits.shape[1:]
  top = jax.lax.stop_gradient(logits.max(axis=(1, 2), keepdims=True))
  kernel = jnp.exp(logits - top)

  def iterate(_, scaling):
    u, v = scaling
    v = (num_tokens / num_experts) / _product("GSE,GS->GE", kernel, u)
    u = 1.0 / _product("GSE,GE->GS", kernel, v)
    return u, v

  ones = jnp.ones_like(kernel[..., 0]), jnp.ones_like(kernel[:, 0])
  u, v = jax.lax.fori_loop(0, num_iterations, iterate, ones)
  return u[:, :, None] * kernel * v[:, None, :]


def log_form(
  logits: Float[ArrayLike, "G S E"], num_iterations: int
) -> Float[Array, "G S E"]:
  """`sinkhorn` for any logits."""
  logits = float32("logits", logits)
  num_tokens, num_experts = logits.shape[1:]
  log_column = jnp.log(num_tokens / num_experts)

  # Backward, an iteration is done again: stored would be (G, S, E) for each.
  @jax.checkpoint
  def iterate(_, potentials):
    f, g = potentials
    g = log_column - jax.nn.logsumexp(logits + f[:, :, None], axis=1)
    f = -jax.nn.logsumexp(logits + g[:, None, :], axis=2)
    return f, g

  zeros = jnp.zeros_like(logits[..., 0]), jnp.zeros_like(logits[:, 0])
  _, g = jax.lax.fori_loop(0, num_iterations, iterate, zeros)
  # The last f over again, but exact however large the logits.
  return jax.nn.softmax(logits + g[:, None, :])
