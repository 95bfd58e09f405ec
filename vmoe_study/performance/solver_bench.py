"""How far the transport solvers are from the optimum, and after how long.

Each problem is one convex function per group that all of its solvers minimise.
An error is relative to the marginal that a solver only approaches: the rows of
the sparse transport, the columns of Sinkhorn's.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vmoe_study.performance.timing import interleaved_seconds
from vmoe_study.routing import sinkhorn, sparse_transport

_DESCENT_STEPS, _SINKHORN_STEPS = 3000, 2000  # Of the runs to the optimum.


@dataclasses.dataclass(frozen=True)
class Problem:
  """One kind of transport, on given data.

  Attributes:
    name: of the problem.
    data: what the solvers take, with their number of iterations.
    solvers: by name.
    objective: of a solution, per token, to be minimised.
    marginal: of a solution; the targets are all 1.
    reference: a solution that is as good as optimal.
  """

  name: str
  data: Float[Array, "G S E"]
  solvers: dict[str, Callable[[Array, int], Array]]
  objective: Callable[[Array], Array]
  marginal: Callable[[Array], Array]
  reference: Callable[[Array], Array]


def sparse_problem(
  logits: Float[Array, "G S E"], max_nonzeros: int, name: str
) -> Problem:
  """The transport plan with at most `max_nonzeros` tokens per expert."""
  affinity = jax.nn.softmax(logits)
  num_tokens = logits.shape[1]

  def solve(affinity, num_iterations, solver):
    return solver(affinity, max_nonzeros, num_iterations)

  def objective(alpha):
    value = sparse_transport.semi_dual(alpha, affinity, max_nonzeros)
    return value.mean() / num_tokens

  def marginal(alpha):
    found = sparse_transport.transport_at(alpha, affinity, max_nonzeros)
    return found.sum(axis=2)

  def reference(affinity):
    start = solve(affinity, 100, sparse_transport.SOLVERS["entropic_start"])
    steps = jnp.geomspace(0.5, 1e-4, _DESCENT_STEPS)
    return sparse_transport.descend(start, affinity, max_nonzeros, steps)

  solvers = {
    solver: functools.partial(solve, solver=function)
    for solver, function in sparse_transport.SOLVERS.items()
  }
  return Problem(name, affinity, solvers, objective, marginal, reference)


def sinkhorn_problem(logits: Float[Array, "G S E"], name: str) -> Problem:
  """The entropic transport plan, in both forms and as the routers call it."""
  num_tokens, num_experts = logits.shape[1:]

  def objective(transport_plan):
    # Of the potentials f + g = log T - logits, with rows that sum to 1.
    return 1 - jnp.mean(jnp.log(transport_plan) - logits)

  def marginal(transport_plan):
    return transport_plan.sum(axis=1) * num_experts / num_tokens

  return Problem(
    name,
    logits,
    {
      "log form": sinkhorn.log_form,
      "scaling form": sinkhorn.scaling_form,
      "form by range": sinkhorn.sinkhorn,
    },
    objective,
    marginal,
    lambda logits: sinkhorn.log_form(logits, _SINKHORN_STEPS),
  )


def measure(
  problem: Problem,
  iterations: Sequence[int],
  rounds: int,
  progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
  """A row per solver and number of iterations.

  `gap` is the objective above the best that was found, per token,
  `marginal_error` the mean deviation from the wanted marginal, `ms` a median.
  """
  calls = {}
  for name, solver in problem.solvers.items():
    for count in iterations:
      progress(f"{problem.name}: compiling {name}, {count} iterations")
      solve = jax.jit(functools.partial(solver, num_iterations=count))
      compiled = solve.lower(problem.data).compile()
      calls[name, count] = functools.partial(compiled, problem.data)
  progress(f"{problem.name}: running to the optimum")
  objective = jax.jit(problem.objective)
  best = float(objective(jax.jit(problem.reference)(problem.data)))
  solutions = {key: call() for key, call in calls.items()}
  values = {key: float(objective(s)) for key, s in solutions.items()}
  best = min(best, *values.values())
  progress(f"{problem.name}: timing")
  seconds = interleaved_seconds(calls, rounds)
  return [
    {
      "problem": problem.name,
      "solver": key[0],
      "iterations": key[1],
      "marginal_error": float(jnp.abs(problem.marginal(solution) - 1).mean()),
      "gap": values[key] - best,
      "ms": 1e3 * float(np.median(seconds[key])),
    }
    for key, solution in solutions.items()
  ]
