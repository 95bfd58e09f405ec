"""Optimal transport in which each expert takes from at most k tokens.

Squared-2-norm regularised transport with k-sparse columns (2209.15466). With
affinities A (S x E), column mass b = S/E and gamma = 1, its semi-dual is

  minimise over alpha in R^S:  sum_e b * M(alpha + A[:, e]) - sum_s alpha_s
  M(x) = max <p, x> - (b/2) (|p|^2 - 1)
         over p in the simplex with at most k nonzeros.

The maximiser p is the projection of x/b onto the k-sparse simplex: keep the k
largest entries and project them onto the simplex. Column e of the transport
plan is T_e = b * p_e, and the gradient in alpha is T's row sums minus 1.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from vmoe_study.routing.arguments import check_positive, float32


@functools.partial(
  jax.jit, static_argnames=("max_nonzeros", "solver", "num_iterations")
)
def sparse_transport(
  affinity: Float[ArrayLike, "G S E"],
  max_nonzeros: int,
  *,
  solver: str = "adam",
  num_iterations: int = 20,
) -> Float[Array, "G S E"]:
  """The k-sparse transport plan: columns sum to S/E, rows roughly to 1.

  Differentiable in `affinity` at the solver's alpha and the support it gives;
  the dependence of alpha itself on the affinity is not followed.

  Args:
    affinity: who suits whom; the routers pass softmax probabilities.
    max_nonzeros: k, the tokens that an expert may take from.
    solver: one of `SOLVERS`.
    num_iterations: of the solver, as it counts them.

  Returns:
    The transport plan, float32.

  Raises:
    ValueError: for an unknown solver, k below 1, or an affinity that does not
      have three axes.
  """
  affinity = float32("affinity", affinity)
  check_positive("max_nonzeros", max_nonzeros)
  if solver not in SOLVERS:
    raise ValueError(f"solver={solver!r}: must be one of {list(SOLVERS)}.")
  max_nonzeros = min(max_nonzeros, affinity.shape[1])
  alpha = SOLVERS[solver](
    jax.lax.stop_gradient(affinity), max_nonzeros, num_iterations
  )
  return transport_at(jax.lax.stop_gradient(alpha), affinity, max_nonzeros)


def transport_at(
  alpha: Float[ArrayLike, "G S"],
  affinity: Float[ArrayLike, "G S E"],
  max_nonzeros: int,
) -> Float[Array, "G S E"]:
  """The transport plan that maximises the semi-dual's columns at `alpha`."""
  alpha, affinity = _arrays(alpha, affinity)
  masses, tokens = _columns(alpha, affinity, max_nonzeros)
  group, expert = _leading_indices(tokens)
  empty = jnp.zeros_like(affinity.swapaxes(1, 2))
  filled = empty.at[group, expert, tokens].set(masses, unique_indices=True)
  return filled.swapaxes(1, 2)


def semi_dual(
  alpha: Float[ArrayLike, "G S"],
  affinity: Float[ArrayLike, "G S E"],
  max_nonzeros: int,
) -> Float[Array, "G"]:
  """The objective that the solvers minimise, per group."""
  alpha, affinity = _arrays(alpha, affinity)
  column_mass = affinity.shape[1] / affinity.shape[2]
  transport_plan = transport_at(alpha, affinity, max_nonzeros)
  profit = jnp.sum(transport_plan * (alpha[..., None] + affinity), axis=(1, 2))
  squares = jnp.sum(transport_plan**2, axis=(1, 2))
  constant = affinity.shape[2] * column_mass**2
  return profit - (squares - constant) / 2 - alpha.sum(axis=1)


def _arrays(alpha, affinity) -> tuple[Array, Array]:
  return float32("alpha", alpha, "G S"), float32("affinity", affinity)


def _columns(alpha, affinity, max_nonzeros):
  """Nonzeros of T: masses and tokens, both (G, E, k)."""
  column_mass = affinity.shape[1] / affinity.shape[2]
  x = (alpha[:, None, :] + affinity.swapaxes(1, 2)) / column_mass
  largest, tokens = jax.lax.top_k(x, max_nonzeros)
  return column_mass * project_onto_simplex(largest), tokens


def project_onto_simplex(
  descending: Float[ArrayLike, "*batch k"],
) -> Float[Array, "*batch k"]:
  """Projects vectors, sorted to descend, onto the simplex.

  p = max(x - tau, 0), where tau = (sum of the n largest - 1) / n for the
  largest n that keeps the n-th entry positive.
  """
  descending = jnp.asarray(descending, jnp.float32)
  count = jnp.cumsum(jnp.ones_like(descending), axis=-1)
  taus = (jnp.cumsum(descending, axis=-1) - 1) / count
  support = jax.lax.stop_gradient(jnp.sum(descending > taus, axis=-1))
  tau = jnp.take_along_axis(taus, support[..., None] - 1, axis=-1)
  return jnp.maximum(descending - tau, 0)


def _excess(alpha, affinity, max_nonzeros) -> Float[Array, "G S"]:
  """Gradient of the semi-dual: row sums of T minus 1."""
  masses, tokens = _columns(alpha, affinity, max_nonzeros)
  group, _ = _leading_indices(tokens)
  return jnp.full_like(alpha, -1.0).at[group, tokens].add(masses)


def _leading_indices(tokens: Int[Array, "G E k"]):
  group = jnp.arange(tokens.shape[0])[:, None, None]
  expert = jnp.arange(tokens.shape[1])[:, None]
  return group, expert


def _adam(affinity, max_nonzeros, num_iterations) -> Float[Array, "G S"]:
  """The authors' solver: Adam from zero, until a group's gradient is small."""
  rate, decay_1, decay_2, epsilon, tolerance = 1e-2, 0.9, 0.999, 1e-8, 1e-3

  def step(i, carry):
    alpha, first, second, error = carry
    gradient = _excess(alpha, affinity, max_nonzeros)
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


# A solver that needs fewer top-k. Affinities vary by less than 1, so that T is
# nearly b/k on its whole support and the problem nearly a linear program:
# maximise <T, A> with 0 <= T <= b/k, rows summing to 1 and columns to b.
# Smoothed by an entropy of weight eps its solution is
#
#   T = min(b/k, u exp(A/eps) v),
#
# found by scaling u and v in turn; up to k = b the bound is idle and this is
# Sinkhorn's algorithm. eps log(u) is the dual variable of the rows: alpha
# starts there. What is left are the kinks of the semi-dual, where an expert's
# k-th token changes: subgradient steps that shrink geometrically settle these.
_EPSILON, _FIRST_STEP = 0.4, 0.5  # In deviations of the affinity.
_SCALING_RANGE = 40.0  # In units of eps; what float32 holds, as in Sinkhorn.


def _entropic_start(
  affinity, max_nonzeros, num_iterations
) -> Float[Array, "G S"]:
  """Entropic scaling, then subgradient steps, two for every five scalings.

  The n steps shrink from 1/2 to 1/(2n) deviations of the affinity.
  """
  alpha = _scaled(affinity, max_nonzeros, num_iterations)
  count = max(2 * num_iterations // 5, 1)
  return descend(
    alpha,
    affinity,
    max_nonzeros,
    jnp.geomspace(_FIRST_STEP, _FIRST_STEP / count, count),
  )


def _scaled(affinity, max_nonzeros, num_iterations) -> Float[Array, "G S"]:
  """The rows' dual variable of the entropic problem with T <= b/k."""
  affinity = affinity.swapaxes(1, 2)
  num_experts, num_tokens = affinity.shape[1:]
  column_mass = num_tokens / num_experts
  # An idle bound is one that nothing reaches; infinity compiles to slower code.
  tight = max_nonzeros <= column_mass
  bound = num_tokens if tight else column_mass / max_nonzeros
  top = affinity.max(axis=(1, 2), keepdims=True)
  widest = top - affinity.min(axis=(1, 2), keepdims=True)
  deviation = _deviation(affinity)[..., None]
  epsilon = jnp.maximum(_EPSILON * deviation, widest / _SCALING_RANGE)
  kernel = jnp.exp((affinity - top) / epsilon)

  def transport_plan(u, v):
    product = v[:, :, None] * kernel * u[:, None, :]
    return jnp.minimum(product, bound)

  def iterate(_, scaling):
    u, v = scaling
    u = u / transport_plan(u, v).sum(axis=1)
    v = v * column_mass / transport_plan(u, v).sum(axis=2)
    return u, v

  start = jnp.ones_like(kernel[:, 0]), column_mass / kernel.sum(axis=2)
  u, _ = jax.lax.fori_loop(0, num_iterations, iterate, start)
  return epsilon[..., 0] * jnp.log(u)


def descend(
  alpha: Float[ArrayLike, "G S"],
  affinity: Float[ArrayLike, "G S E"],
  max_nonzeros: int,
  steps: Float[ArrayLike, "n"],
) -> Float[Array, "G S"]:
  """Takes subgradient steps of the given sizes, in deviations of affinity."""
  alpha, affinity = _arrays(alpha, affinity)
  steps, unit = float32("steps", steps, "n"), _deviation(affinity)

  def step(i, alpha):
    return alpha - steps[i] * unit * _excess(alpha, affinity, max_nonzeros)

  return jax.lax.fori_loop(0, len(steps), step, alpha)


def _deviation(affinity) -> Float[Array, "G 1"]:
  """Standard deviation within a group; positive where all are equal."""
  return jnp.maximum(affinity.std(axis=(1, 2)), 1e-6)[:, None]


SOLVERS: dict[str, Callable] = {
  "adam": _adam,
  "entropic_start": _entropic_start,
}
