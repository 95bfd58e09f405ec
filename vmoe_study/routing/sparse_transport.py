"""Optimal transport with at most k nonzeros in every column, or in every row.

The problem (arXiv:2209.15466): given affinities A (S x E) of tokens and
experts, the row mass a and the column mass b = a S/E, maximise <T, A> - |T|^2/2
over T >= 0 with row sums a, column sums b and at most k nonzeros per column.

If each expert takes from at most k tokens, a = 1. If each token goes to at most
k experts, the roles are exchanged: the transpose of the problem with experts as
rows of mass S/E and tokens as columns of mass 1 (`row_sparse_transport`).

Lemma. Up to a constant, the Lagrangian dual in the row sums is to minimise

  F(alpha) = sum_e b * M(alpha + A[:, e]) - a sum_s alpha_s  over alpha in R^S,
  M(x) = max <p, x> - (b/2) (|p|^2 - 1)  over k-sparse p in the simplex.

The maximiser p is the projection of x/b onto the k-sparse simplex, and with
column e of T(alpha) being b * p, F has the subgradient (row sums of T) - a.

1. Let column e of T be b * p_e and alpha the multipliers of the row sums. The
   Lagrangian is the sum over columns of b <p_e, alpha + A[:, e]> - (b^2/2)
   |p_e|^2, minus sum_s alpha_s: its maximum over T is F minus E b^2/2.
2. <p, x> - (b/2) |p|^2 = -(b/2) |p - x/b|^2 + |x|^2 / (2b), so p is the
   projection. It is found by projecting the k largest entries of x/b onto the
   simplex and setting the others to 0 (arXiv:1206.1529).
3. M is a maximum of affine functions of x, so its maximiser p is a subgradient.
   By the chain rule the sum of the columns b * p, minus a, is a subgradient of
   F.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from vmoe_study.routing.arguments import as_float32, check_positive


@functools.partial(
  jax.jit,
  static_argnames=("max_nonzeros", "row_mass", "solver", "num_iterations"),
)
def sparse_transport(
  affinity: Float[ArrayLike, "G S E"],
  max_nonzeros: int,
  *,
  row_mass: float = 1.0,
  solver: str = "adam",
  num_iterations: int = 20,
) -> Float[Array, "G S E"]:
  """The k-sparse transport plan: columns sum to a S/E, rows to about a.

  Differentiable in `affinity` for fixed alpha and support: gradients do not
  flow through the solver.

  Args:
    affinity: affinity of every token and expert, any real dtype; routers pass
      softmax probabilities.
    max_nonzeros: k, tokens that an expert may take from; S if larger.
    row_mass: a, the mass of a token.
    solver: a key of `SOLVERS`.
    num_iterations: iterations of the solver.

  Returns:
    The transport plan, float32.

  Raises:
    ValueError: for an unknown solver, k below 1, or an affinity that does not
      have three axes.

  Example:
    >>> import jax
    >>> from vmoe_study.routing.sparse_transport import sparse_transport
    >>> affinity = jax.nn.softmax(jax.numpy.arange(8.0).reshape(1, 4, 2) % 3)
    >>> transport_plan = sparse_transport(affinity, max_nonzeros=2)
    >>> (transport_plan > 0).sum(axis=1).tolist()
    [[2, 2]]
    >>> transport_plan.sum(axis=1).round(3).tolist()
    [[2.0, 2.0]]
  """
  affinity = as_float32("affinity", affinity)
  check_positive("max_nonzeros", max_nonzeros)
  if solver not in SOLVERS:
    raise ValueError(f"solver={solver!r}: must be one of {list(SOLVERS)}.")
  max_nonzeros = min(max_nonzeros, affinity.shape[1])
  alpha = SOLVERS[solver](
    jax.lax.stop_gradient(affinity), max_nonzeros, num_iterations, row_mass
  )
  alpha = jax.lax.stop_gradient(alpha)
  return transport_at(alpha, affinity, max_nonzeros, row_mass)


def row_sparse_transport(
  affinity: Float[ArrayLike, "G S E"],
  max_nonzeros: int,
  *,
  solver: str = "adam",
  num_iterations: int = 20,
) -> Float[Array, "G S E"]:
  """The plan with k nonzeros per token: rows sum to 1, columns to about S/E.

  Args:
    affinity: see `sparse_transport`.
    max_nonzeros: k, experts that a token may go to; E if larger.
    solver: a key of `SOLVERS`; its dual variable has one entry per expert.
    num_iterations: iterations of the solver.

  Returns:
    The transport plan, float32, differentiable like that of `sparse_transport`.

  Raises:
    ValueError: see `sparse_transport`.

  Example:
    >>> import jax
    >>> from vmoe_study.routing.sparse_transport import row_sparse_transport
    >>> affinity = jax.nn.softmax(jax.numpy.arange(8.0).reshape(1, 4, 2) % 3)
    >>> transport_plan = row_sparse_transport(affinity, max_nonzeros=1)
    >>> transport_plan[0].tolist()
    [[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
  """
  affinity = as_float32("affinity", affinity)
  num_tokens, num_experts = affinity.shape[1:]
  return sparse_transport(
    affinity.swapaxes(1, 2),
    max_nonzeros,
    row_mass=num_tokens / num_experts,
    solver=solver,
    num_iterations=num_iterations,
  ).swapaxes(1, 2)


def transport_at(
  alpha: Float[ArrayLike, "G S"],
  affinity: Float[ArrayLike, "G S E"],
  max_nonzeros: int,
  row_mass: float = 1.0,
) -> Float[Array, "G S E"]:
  """T(alpha), the maximiser of every column of the dual at `alpha`, float32."""
  alpha, affinity = _validate(alpha, affinity)
  mass_GEK, tokens_GEK = _columns(alpha, affinity, max_nonzeros, row_mass)
  group_G11, expert_E1 = _leading_indices(tokens_GEK)
  zeros_GES = jnp.zeros_like(affinity.swapaxes(1, 2))
  transport_GES = zeros_GES.at[group_G11, expert_E1, tokens_GEK].set(
    mass_GEK, unique_indices=True
  )
  return transport_GES.swapaxes(1, 2)


def semi_dual(
  alpha: Float[ArrayLike, "G S"],
  affinity: Float[ArrayLike, "G S E"],
  max_nonzeros: int,
  row_mass: float = 1.0,
) -> Float[Array, "G"]:
  """F(alpha), the objective that the solvers minimise, float32."""
  alpha, affinity = _validate(alpha, affinity)
  num_experts = affinity.shape[2]
  column_mass = _column_mass(affinity, row_mass)
  transport_GSE = transport_at(alpha, affinity, max_nonzeros, row_mass)
  profit_G = jnp.sum(transport_GSE * (alpha[..., None] + affinity), axis=(1, 2))
  squares_G = jnp.sum(transport_GSE**2, axis=(1, 2))
  constant = num_experts * column_mass**2
  return profit_G - (squares_G - constant) / 2 - row_mass * alpha.sum(axis=1)


def _validate(alpha: ArrayLike, affinity: ArrayLike) -> tuple[Array, Array]:
  return as_float32("alpha", alpha, "G S"), as_float32("affinity", affinity)


def _column_mass(affinity_GSE, row_mass) -> float:
  return row_mass * affinity_GSE.shape[1] / affinity_GSE.shape[2]


def _columns(alpha_GS, affinity_GSE, max_nonzeros, row_mass):
  """Nonzeros of T(alpha): their masses and tokens, both (G, E, K), K = k."""
  column_mass = _column_mass(affinity_GSE, row_mass)
  x_GES = (alpha_GS[:, None, :] + affinity_GSE.swapaxes(1, 2)) / column_mass
  largest_GEK, tokens_GEK = jax.lax.top_k(x_GES, max_nonzeros)
  return column_mass * project_onto_simplex(largest_GEK), tokens_GEK


def project_onto_simplex(
  descending: Float[ArrayLike, "*batch k"],
) -> Float[Array, "*batch k"]:
  """Projects vectors onto the simplex (arXiv:1309.1541).

  The projection of x is max(x - tau, 0) with tau = (sum of the n largest - 1)
  / n, for the largest n whose n-th largest entry is above tau.

  Args:
    descending: vectors sorted in descending order, any real dtype.

  Returns:
    The projections, float32, in the same order.
  """
  descending = jnp.asarray(descending, jnp.float32)
  count = jnp.cumsum(jnp.ones_like(descending), axis=-1)
  taus = (jnp.cumsum(descending, axis=-1) - 1) / count
  support = jax.lax.stop_gradient(jnp.sum(descending > taus, axis=-1))
  tau = jnp.take_along_axis(taus, support[..., None] - 1, axis=-1)
  return jnp.maximum(descending - tau, 0)


def _subgradient(
  alpha_GS, affinity_GSE, max_nonzeros, row_mass
) -> Float[Array, "G S"]:
  """The subgradient of F at alpha: row sums of T(alpha) minus a."""
  mass_GEK, tokens_GEK = _columns(
    alpha_GS, affinity_GSE, max_nonzeros, row_mass
  )
  group_G11, _ = _leading_indices(tokens_GEK)
  missing_GS = jnp.full_like(alpha_GS, -row_mass)
  return missing_GS.at[group_G11, tokens_GEK].add(mass_GEK)


def _leading_indices(tokens_GEK: Int[Array, "G E K"]):
  group_G11 = jnp.arange(tokens_GEK.shape[0])[:, None, None]
  expert_E1 = jnp.arange(tokens_GEK.shape[1])[:, None]
  return group_G11, expert_E1


def _adam(
  affinity, max_nonzeros, num_iterations, row_mass=1.0
) -> Float[Array, "G S"]:
  """The solver of the original routers: Adam from alpha = 0.

  A group stops when the norm of its subgradient is at most the tolerance.
  """
  rate, decay_1, decay_2, epsilon, tolerance = 1e-2, 0.9, 0.999, 1e-8, 1e-3

  def step(i, carry):
    alpha, first, second, error = carry
    gradient = _subgradient(alpha, affinity, max_nonzeros, row_mass)
    running = error > tolerance
    first_new = decay_1 * first + (1 - decay_1) * gradient
    second_new = decay_2 * second + (1 - decay_2) * gradient**2
    update = (first_new / (1 - decay_1 ** (i + 1))) / (
      jnp.sqrt(second_new / (1 - decay_2 ** (i + 1))) + epsilon
    )
    new = alpha - rate * update, first_new, second_new, _norm(gradient)
    return jax.tree.map(lambda a, b: jnp.where(running, a, b), new, carry)

  zeros = jnp.zeros_like(affinity[..., 0])
  error = jnp.full_like(zeros[:, :1], jnp.inf)
  return jax.lax.fori_loop(
    0, num_iterations, step, (zeros, zeros, zeros, error)
  )[0]


def _norm(x: Float[Array, "G S"]) -> Float[Array, "G 1"]:
  return jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True))


# The solver "entropic_start" needs fewer top-k operations than Adam.
#
# 1. On its support, a column of T is alpha + A[:, e] minus a constant and has
#    the mean b/k. Where alpha + A varies little over the support, T is close to
#    b/k there, and the problem close to a linear program: maximise <T, A> with
#    0 <= T <= b/k, row sums a and column sums b.
# 2. Smoothed by an entropy of weight eps, the program has the solution
#    T = min(b/k, u * exp(A/eps) * v). Updating u and v in turn approaches it.
#    For k a <= b the bound is at least a, which no entry of a row exceeds: this
#    is Sinkhorn's algorithm.
# 3. eps * log(u) is the dual variable of the row sums: alpha starts there.
# 4. The remaining error is at the kinks of F, where the k-th token of an expert
#    changes. Subgradient steps of geometrically decreasing size reduce it.
_EPSILON, _FIRST_STEP = 0.4, 0.5  # In standard deviations of the affinity.
_SCALING_RANGE = 40.0  # Of A/eps; safe in float32, see sinkhorn.py.


def _entropic_start(
  affinity, max_nonzeros, num_iterations, row_mass=1.0
) -> Float[Array, "G S"]:
  """Entropic scaling, then n subgradient steps, two per five iterations.

  Steps decrease from 1/2 to 1/(2n) standard deviations of the affinity.
  """
  alpha = _entropic_dual(affinity, max_nonzeros, num_iterations, row_mass)
  count = max(2 * num_iterations // 5, 1)
  return descend(
    alpha,
    affinity,
    max_nonzeros,
    jnp.geomspace(_FIRST_STEP, _FIRST_STEP / count, count),
    row_mass,
  )


def _entropic_dual(
  affinity_GSE, max_nonzeros, num_iterations, row_mass
) -> Float[Array, "G S"]:
  """The row sums' dual variable of the entropic problem with T <= b/k."""
  affinity_GES = affinity_GSE.swapaxes(1, 2)
  column_mass = _column_mass(affinity_GSE, row_mass)
  # The total mass as bound means no bound: infinity compiles to slower code.
  has_bound = max_nonzeros * row_mass > column_mass
  total = row_mass * affinity_GSE.shape[1]
  bound = column_mass / max_nonzeros if has_bound else total
  top_G11 = affinity_GES.max(axis=(1, 2), keepdims=True)
  range_G11 = top_G11 - affinity_GES.min(axis=(1, 2), keepdims=True)
  deviation_G11 = _deviation(affinity_GES)[..., None]
  epsilon_G11 = jnp.maximum(
    _EPSILON * deviation_G11, range_G11 / _SCALING_RANGE
  )
  kernel_GES = jnp.exp((affinity_GES - top_G11) / epsilon_G11)

  def transport_plan(u_GS, v_GE):
    product_GES = v_GE[:, :, None] * kernel_GES * u_GS[:, None, :]
    return jnp.minimum(product_GES, bound)

  def iterate(_, scaling):
    u_GS, v_GE = scaling
    u_GS = u_GS * row_mass / transport_plan(u_GS, v_GE).sum(axis=1)
    v_GE = v_GE * column_mass / transport_plan(u_GS, v_GE).sum(axis=2)
    return u_GS, v_GE

  start = jnp.ones_like(kernel_GES[:, 0]), column_mass / kernel_GES.sum(axis=2)
  u_GS, _ = jax.lax.fori_loop(0, num_iterations, iterate, start)
  return epsilon_G11[..., 0] * jnp.log(u_GS)


def descend(
  alpha: Float[ArrayLike, "G S"],
  affinity: Float[ArrayLike, "G S E"],
  max_nonzeros: int,
  steps: Float[ArrayLike, "n"],
  row_mass: float = 1.0,
) -> Float[Array, "G S"]:
  """Takes subgradient steps from alpha.

  Args:
    alpha: starting point.
    affinity: see `sparse_transport`.
    max_nonzeros: k.
    steps: step sizes, in standard deviations of the affinity.
    row_mass: a.

  Returns:
    The last alpha, float32.
  """
  alpha, affinity = _validate(alpha, affinity)
  steps, unit_G1 = as_float32("steps", steps, "n"), _deviation(affinity)

  def step(i, alpha):
    size_G1 = steps[i] * unit_G1
    gradient = _subgradient(alpha, affinity, max_nonzeros, row_mass)
    return alpha - size_G1 * gradient

  return jax.lax.fori_loop(0, len(steps), step, alpha)


def _deviation(affinity) -> Float[Array, "G 1"]:
  """Standard deviation within each group, but at least 1e-6."""
  return jnp.maximum(affinity.std(axis=(1, 2)), 1e-6)[:, None]


SOLVERS: dict[str, Callable] = {
  "adam": _adam,
  "entropic_start": _entropic_start,
}
