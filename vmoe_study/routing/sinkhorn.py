"""Entropic optimal transport between tokens and experts.

Tokens are rows of mass 1, experts are columns of mass S/E.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vmoe_study.routing.arguments import as_float32

# When the scaling form is safe in float32. It iterates, from u = 1,
#
#   v = (S/E) / (kernel' u),  u = 1 / (kernel v),  kernel = exp(logits - max).
#
# Lemma. Let R be the range (maximum - minimum) of the logits of a group. Then
# after every update, for any S,
#
#   e^-R <= u <= e^2R,            e^-2R <= kernel v  <= e^R,
#   e^-R/E <= v <= e^2R/E,      S e^-2R <= kernel' u <= S e^R,
#
# and each entry of the result T = u * kernel * v is at least e^-2R / E. With
# R <= 40 and E <= 1000 all of these are normal float32 numbers.
#
# Proof. Let f = log u and g = log v; kernel entries are in [e^-R, 1].
# 1. Spread: rows of the kernel differ by factors of at most e^R, and so do the
#    entries of u = 1 / (kernel v). Hence |f_s - mean f| <= R; likewise for g.
# 2. Mass: after each update T sums to S, as its rows sum to 1 or its columns to
#    S/E.
# 3. Lower bounds: an update of u divides it by the row sums of T, whose mean is
#    1 by (2), so by Jensen's inequality mean f does not decrease from its start
#    at 0. Likewise mean g, from the first update of v, which has v >= 1/E.
# 4. Upper bound: let P = 1/E everywhere. P and T both sum to S, so by Gibbs'
#    inequality 0 <= sum P log(P/T). Inserting log T = f + log kernel + g and
#    log kernel >= -R gives mean f + mean g <= R - log E.
# 5. By (3) and (4), 0 <= mean f <= R and -log E <= mean g <= R - log E; with
#    (1) these bound u and v, and so kernel v = 1/u and kernel' u = (S/E)/v.
# 6. Entries of a row of T differ by factors of at most e^2R, by (1) and the
#    range of the kernel, and their mean is 1/E.
_SCALING_RANGE = 40.0


@functools.partial(jax.jit, static_argnames="num_iterations")
def sinkhorn(
  logits: Float[ArrayLike, "G S E"], num_iterations: int = 20
) -> Float[Array, "G S E"]:
  """The entropic transport plan T of cost -logits, epsilon 1 (arXiv:1306.0895).

  With potentials f of tokens and g of experts, T = exp(logits + f + g). From
  f = g = 0, one iteration sets g so that columns sum to S/E, then f so that
  rows sum to 1: in the result rows are exact and columns approximate.

  With u = exp(f) and v = exp(g) an iteration takes two matrix-vector products
  with the kernel exp(logits): the scaling form, used if the logits of every
  group are within a range that is safe in float32. Otherwise the same
  iterations are computed by logsumexp: the log form.

  Args:
    logits: router logits of any float dtype.
    num_iterations: updates of both columns and rows.

  Returns:
    T, float32, differentiable through the iterations.

  Raises:
    ValueError: if the logits do not have three axes.

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.sinkhorn import sinkhorn
    >>> transport_plan = sinkhorn(jnp.arange(8.0).reshape(1, 4, 2) % 3)
    >>> transport_plan.sum(axis=2).round(3).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    >>> transport_plan.sum(axis=1).round(3).tolist()
    [[2.0, 2.0]]
  """
  logits = as_float32("logits", logits)
  is_safe = _largest_range(logits) <= _SCALING_RANGE
  return jax.lax.cond(
    is_safe,
    functools.partial(scaling_form, num_iterations=num_iterations),
    functools.partial(log_form, num_iterations=num_iterations),
    logits,
  )


# Without this, TPUs and GPUs may round the factors to fewer bits.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def _largest_range(logits_GSE: Float[Array, "G S E"]) -> Float[Array, ""]:
  logits_GSE = jax.lax.stop_gradient(logits_GSE)
  top_G, bottom_G = logits_GSE.max(axis=(1, 2)), logits_GSE.min(axis=(1, 2))
  return (top_G - bottom_G).max()


def scaling_form(
  logits: Float[ArrayLike, "G S E"], num_iterations: int
) -> Float[Array, "G S E"]:
  """`sinkhorn` for logits with a range of at most 40 in every group."""
  logits_GSE = as_float32("logits", logits)
  num_tokens, num_experts = logits_GSE.shape[1:]
  top_G11 = jax.lax.stop_gradient(logits_GSE.max(axis=(1, 2), keepdims=True))
  kernel_GSE = jnp.exp(logits_GSE - top_G11)

  def iterate(_, scaling):
    u_GS, v_GE = scaling
    v_GE = (num_tokens / num_experts) / _einsum("GSE,GS->GE", kernel_GSE, u_GS)
    u_GS = 1.0 / _einsum("GSE,GE->GS", kernel_GSE, v_GE)
    return u_GS, v_GE

  ones = jnp.ones_like(kernel_GSE[..., 0]), jnp.ones_like(kernel_GSE[:, 0])
  u_GS, v_GE = jax.lax.fori_loop(0, num_iterations, iterate, ones)
  return u_GS[:, :, None] * kernel_GSE * v_GE[:, None, :]


def log_form(
  logits: Float[ArrayLike, "G S E"], num_iterations: int
) -> Float[Array, "G S E"]:
  """`sinkhorn` for logits of any range."""
  logits_GSE = as_float32("logits", logits)
  num_tokens, num_experts = logits_GSE.shape[1:]
  log_column_mass = jnp.log(num_tokens / num_experts)

  # The backward pass recomputes each iteration instead of storing (G, S, E).
  @jax.checkpoint
  def iterate(_, potentials):
    f_GS, g_GE = potentials
    columns_GE = jax.nn.logsumexp(logits_GSE + f_GS[:, :, None], axis=1)
    g_GE = log_column_mass - columns_GE
    f_GS = -jax.nn.logsumexp(logits_GSE + g_GE[:, None, :], axis=2)
    return f_GS, g_GE

  zeros = jnp.zeros_like(logits_GSE[..., 0]), jnp.zeros_like(logits_GSE[:, 0])
  _, g_GE = jax.lax.fori_loop(0, num_iterations, iterate, zeros)
  # Equal to using the last f, but with exact rows for logits of any size.
  return jax.nn.softmax(logits_GSE + g_GE[:, None, :])
