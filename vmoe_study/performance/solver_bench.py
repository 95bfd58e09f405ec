"""Benchmark of the transport solvers: distance from the optimum against time.

All solvers of a problem minimise the same convex function of each group. Their
error is measured on the marginal that they satisfy only in the limit: the rows
for sparse transport, the columns for Sinkhorn.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vmoe_study.performance.bench_shapes import SolverShape
from vmoe_study.performance.timing import interleaved_seconds
from vmoe_study.routing import sinkhorn, sparse_transport
from vmoe_study.routing.capacity import expert_capacity

# Iterations of the reference solutions.
_DESCENT_STEPS, _SINKHORN_STEPS = 3000, 2000


@dataclasses.dataclass(frozen=True)
class Problem:
  """A transport problem on given data.

  Attributes:
    name: name of the problem.
    data: first argument of the solvers; the second is the iteration count.
    solvers: solvers by name.
    objective: objective per token of a solution, to be minimised.
    marginal: marginal of a solution; its target is 1 everywhere.
    reference: computes a practically optimal solution from the data.
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
  """Transport plan with at most `max_nonzeros` tokens per expert."""
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
  """Entropic transport plan: both forms, and the choice between them."""
  num_tokens, num_experts = logits.shape[1:]

  def objective(transport_plan):
    # In terms of the potentials f + g = log T - logits; rows of T sum to 1.
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


def make_problems(
  shape: SolverShape, capacities: Sequence[float]
) -> Iterator[Problem]:
  """Sparse transport at each capacity factor, and Sinkhorn's problem.

  The logits of Sinkhorn's problem have four times the standard deviation,
  because otherwise 5 iterations would already reach the optimum.
  """
  size = shape.groups, shape.tokens, shape.experts
  std = shape.logit_std
  logits = std * jax.random.normal(jax.random.key(0), size)
  width = "logits of standard deviation"
  for capacity in capacities:
    slots = expert_capacity(shape.tokens, shape.experts, capacity)
    name = f"sparse transport at capacity {capacity:g}, {width} {std:g}"
    yield sparse_problem(logits, slots, name)
  name = f"entropic transport (Sinkhorn), {width} {4 * std:g}"
  yield sinkhorn_problem(4 * logits, name)


def bench_solvers(
  shape: SolverShape,
  capacities: Sequence[float],
  iterations: Sequence[int],
  rounds: int,
  progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
  """Measures every solver of every problem.

  Args:
    shape: sizes of the logits.
    capacities: capacity factors of the sparse transport.
    iterations: iteration counts of each solver.
    rounds: number of timings of each.
    progress: called with messages.

  Returns:
    JSON-able: shape, device, and the rows of `measure` under "rows".
  """
  return {
    "shape": dataclasses.asdict(shape),
    "device": jax.devices()[0].device_kind,
    "rows": [
      row
      for problem in make_problems(shape, capacities)
      for row in measure(problem, iterations, rounds, progress)
    ],
  }


def measure(
  problem: Problem,
  iterations: Sequence[int],
  rounds: int,
  progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
  """One row per solver and number of iterations.

  "gap" is the objective per token minus the smallest one found,
  "marginal_error" the mean deviation from the target marginal, "ms" the median
  time.
  """
  calls = {}
  for name, solver in problem.solvers.items():
    for count in iterations:
      progress(f"{problem.name}: compiling {name}, {count} iterations")
      solve = jax.jit(functools.partial(solver, num_iterations=count))
      compiled = solve.lower(problem.data).compile()
      calls[name, count] = functools.partial(compiled, problem.data)
  progress(f"{problem.name}: solving to the optimum")
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
