"""Sparse transport against brute force and against the solver of POT."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.routing.sparse_transport import (
  SOLVERS,
  project_onto_simplex,
  row_sparse_transport,
  semi_dual,
  sparse_transport,
  transport_at,
)

from . import oracles

# POT needs none of the array libraries that it would load, except NumPy.
os.environ["POT_BACKEND_DISABLE_PYTORCH"] = "1"
os.environ["POT_BACKEND_DISABLE_JAX"] = "1"
os.environ["POT_BACKEND_DISABLE_CUPY"] = "1"
os.environ["POT_BACKEND_DISABLE_TENSORFLOW"] = "1"
from ot import smooth as pot

S, E = 7, 3
GAMMA = 1.0


@pytest.fixture(scope="module")
def affinity():
  logits = np.random.default_rng(0).normal(size=(2, S, E))
  return np.float32(oracles.softmax(logits))


@pytest.fixture(scope="module")
def alpha():
  return np.float32(0.3 * np.random.default_rng(1).normal(size=(2, S)))


@pytest.fixture(scope="module")
def larger():
  """24 tokens, 4 experts, at most 6 tokens each."""
  logits = np.random.default_rng(2).normal(size=(24, 4))
  return np.float32(oracles.softmax(logits)), 6


def _slow(*values):
  return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def _vectors():
  random = np.random.default_rng(0)
  return {
    "normal": random.normal(size=6),
    "large": 50 * random.normal(size=6),
    "small": 0.01 * random.normal(size=6),
    "equal": np.zeros(6),
    "tied": np.array([0.5, 0.2, 0.5, 0.2, 0.5, -1]),
    "vertex": np.array([3.0, 0, 0, 0, 0, 0]),
    "inside": np.array([0.3, 0.25, 0.2, 0.15, 0.07, 0.03]),
  }


@pytest.mark.parametrize("k", [1, 2, 5, 6])
@pytest.mark.parametrize("vector", _vectors())
def test_projection(vector, k):
  x = np.float32(-np.sort(-_vectors()[vector]))
  expected = oracles.project_onto_sparse_simplex(np.float64(x), k)
  projected = project_onto_simplex(jnp.asarray(x[:k]))
  np.testing.assert_allclose(projected, expected[:k], atol=1e-5)
  assert not np.any(expected[k:])


@pytest.mark.parametrize("k", [3, *_slow(1, S)])
def test_plan_and_objective_at_alpha(alpha, affinity, k):
  mass = S / E
  columns = [
    [mass * oracles.project_onto_sparse_simplex((p + a) / mass, k) for a in A.T]
    for p, A in zip(np.float64(alpha), np.float64(affinity), strict=True)
  ]
  transport_plan = transport_at(jnp.asarray(alpha), jnp.asarray(affinity), k)
  expected = np.swapaxes(columns, 1, 2)
  np.testing.assert_allclose(transport_plan, expected, atol=1e-6)

  objective = semi_dual(jnp.asarray(alpha), jnp.asarray(affinity), k)
  expected = [
    oracles.semi_dual(p, A, k)
    for p, A in zip(np.float64(alpha), np.float64(affinity), strict=True)
  ]
  np.testing.assert_allclose(objective, expected, rtol=1e-6)


@pytest.mark.parametrize("k", [3, *_slow(1, S)])
def test_row_sums_are_the_objectives_gradient(alpha, affinity, k):
  transport_plan = transport_at(jnp.asarray(alpha), jnp.asarray(affinity), k)
  step = 1e-5
  for s in range(S):
    moved = step * np.eye(S)[s]
    up = oracles.semi_dual(alpha[0] + moved, affinity[0], k)
    down = oracles.semi_dual(alpha[0] - moved, affinity[0], k)
    excess = transport_plan[0, s].sum() - 1
    np.testing.assert_allclose(excess, (up - down) / (2 * step), atol=1e-5)


@pytest.mark.parametrize("k", [2, *_slow(1, E)])
def test_a_row_sparse_plan_is_the_transposed_problem(affinity, k):
  """Its rows project alpha + A onto the k-sparse simplex, with mass 1."""
  alpha = np.float32(0.3 * np.random.default_rng(1).normal(size=(2, E)))
  transposed = jnp.asarray(affinity).swapaxes(1, 2)
  found = transport_at(jnp.asarray(alpha), transposed, k, row_mass=S / E)
  expected = [
    [oracles.project_onto_sparse_simplex(p + row, k) for row in A]
    for p, A in zip(np.float64(alpha), np.float64(affinity), strict=True)
  ]
  np.testing.assert_allclose(found.swapaxes(1, 2), expected, atol=1e-6)
  columns = found.sum(axis=2)
  gradient = jax.grad(
    lambda a: semi_dual(a, transposed, k, row_mass=S / E).sum()
  )(jnp.asarray(alpha))
  np.testing.assert_allclose(gradient, columns - S / E, atol=1e-5)


@pytest.mark.parametrize("K", [1, 2])
def test_the_entropic_start_balances_experts_better_than_adam(K):
  logits = np.random.default_rng(0).normal(size=(2, 196, 32))
  affinity = jnp.float32(oracles.softmax(logits))
  errors = {}
  for solver in SOLVERS:
    transport_plan = row_sparse_transport(affinity, K, solver=solver)
    np.testing.assert_allclose(transport_plan.sum(axis=2), 1, rtol=1e-5)
    errors[solver] = np.abs(transport_plan.sum(axis=1) - 196 / 32).mean()
  assert errors["entropic_start"] < errors["adam"]


def _pot(affinity, k):
  """POT's arguments: row and column masses, cost, regulariser."""
  num_tokens, num_experts = affinity.shape
  rows = np.ones(num_tokens)
  columns = np.full(num_experts, num_tokens / num_experts)
  cost = -np.float64(affinity)
  return rows, columns, cost, pot.SparsityConstrained(k, GAMMA)


def _objectives(alpha, affinity, k):
  """Our objective, and that of POT with its sign and constant adapted."""
  ours = semi_dual(jnp.float32(alpha)[None], jnp.asarray(affinity)[None], k)[0]
  rows, columns, cost, regulariser = _pot(affinity, k)
  theirs, _ = pot.semi_dual_obj_grad(alpha, rows, columns, cost, regulariser)
  return ours, -theirs + GAMMA / 2 * np.sum(columns**2)


def test_pot_agrees_at_equal_alpha(larger):
  affinity, k = larger
  for seed in range(3):
    alpha = 0.1 * np.random.default_rng(seed).normal(size=len(affinity))
    ours, theirs = _objectives(alpha, affinity, k)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    _, columns, cost, regulariser = _pot(affinity, k)
    expected = pot.get_plan_from_semi_dual(alpha, columns, cost, regulariser)
    transport_plan = transport_at(
      jnp.float32(alpha)[None], jnp.asarray(affinity)[None], k
    )
    np.testing.assert_allclose(transport_plan[0], expected, atol=1e-5)


# POT passes an option that SciPy 1.17 deprecates and 1.18 ignores.
@pytest.mark.filterwarnings(
  "ignore:scipy.optimize:DeprecationWarning",
  "ignore:Unknown solver options",
)
@pytest.mark.parametrize(
  "solver, closeness", [("adam", 1e-3), ("entropic_start", 1e-2)]
)
def test_solvers_approach_pots_optimum(larger, solver, closeness):
  affinity, k = larger
  rows, columns, cost, _ = _pot(affinity, k)
  _, log = pot.smooth_ot_semi_dual(
    rows,
    columns,
    cost,
    reg=GAMMA,
    reg_type="sparsity_constrained",
    max_nz=k,
    log=True,
  )
  _, optimum = _objectives(log["alpha"], affinity, k)
  gaps = []
  alphas = [
    SOLVERS[solver](jnp.asarray(affinity)[None], k, num_iterations)[0]
    for num_iterations in (20, 500)
  ]
  for alpha in (np.zeros(len(affinity)), *map(np.float64, alphas)):
    gaps.append(_objectives(alpha, affinity, k)[0] - optimum)
  assert gaps[0] > 5 * gaps[1] > 0
  assert abs(gaps[2]) < closeness * gaps[0]


def _uneven(kind):
  """Affinities unlike those of a router at initialisation."""
  logits = np.random.default_rng(0).normal(size=(1, 24, 4))
  one_peak = np.zeros((1, 24, 4))
  one_peak[0, 3, 1] = 1.0
  return jnp.float32(
    {
      "all equal": np.full((1, 24, 4), 0.25),
      "one peak": one_peak,
      "one expert": np.broadcast_to([1.0, 0, 0, 0], (1, 24, 4)),
      "certain": oracles.softmax(1e4 * logits),
      "moderate": oracles.softmax(3 * logits),
    }[kind]
  )


@pytest.mark.parametrize(
  "kind",
  ["one expert", *_slow("all equal", "one peak", "certain", "moderate")],
)
def test_the_entropic_start_holds_for_any_affinity(kind):
  affinity = _uneven(kind)
  solver = jax.jit(SOLVERS["entropic_start"], static_argnums=(1, 2))
  objective = jax.jit(semi_dual, static_argnums=2)
  for k, num_iterations in ((1, 20), (6, 1), (6, 20), (6, 200), (24, 20)):
    alpha = solver(affinity, k, num_iterations)
    assert np.all(np.isfinite(alpha))
    if k >= 6 and num_iterations >= 20:
      # For equal tokens the start, 0, is already optimal.
      start = objective(jnp.zeros_like(alpha), affinity, k)[0]
      assert objective(alpha, affinity, k)[0] < 1.05 * start


@pytest.mark.parametrize("std", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("k", [6, 12])
def test_the_entropic_start_beats_adam(std, k):
  """At the shapes of routers: 32 experts, one image."""
  logits = std * np.random.default_rng(0).normal(size=(2, 196, 32))
  affinity = jnp.float32(oracles.softmax(logits))
  errors = {}
  for solver in SOLVERS:
    rows = sparse_transport(affinity, k, solver=solver).sum(axis=2)
    errors[solver] = np.abs(rows - 1).mean()
  assert errors["entropic_start"] < errors["adam"]


@pytest.mark.parametrize("k", [2, *_slow(S)])
def test_gradient_at_fixed_support(alpha, affinity, k):
  values = np.random.default_rng(3).normal(size=(S, E))
  mass = S / E

  def expected_total(A):
    columns = [
      oracles.project_onto_sparse_simplex((alpha[0] + a) / mass, k) for a in A.T
    ]
    return mass * np.sum(np.transpose(columns) * values)

  def total(A):
    transport_plan = transport_at(jnp.asarray(alpha), A, k)
    return jnp.sum(transport_plan[0] * np.float32(values))

  gradient = jax.jit(jax.grad(total))(jnp.asarray(affinity))[0]
  assert np.any(gradient)
  step = 1e-6
  for s in range(S):
    for e in range(E):
      moved = np.zeros((S, E))
      moved[s, e] = step
      up = expected_total(affinity[0] + moved)
      down = expected_total(affinity[0] - moved)
      expected = (up - down) / (2 * step)
      np.testing.assert_allclose(gradient[s, e], expected, atol=1e-4)


def test_gradient_is_that_of_the_plan_at_the_solvers_alpha(affinity):
  values = np.float32(np.random.default_rng(3).normal(size=(2, S, E)))
  affinity = jnp.asarray(affinity)
  alpha = SOLVERS["adam"](affinity, 2, 20)
  functions = (
    lambda A: jnp.sum(sparse_transport(A, 2) * values),
    lambda A: jnp.sum(transport_at(alpha, A, 2) * values),
  )
  solved, fixed = (jax.jit(jax.grad(function)) for function in functions)
  np.testing.assert_allclose(solved(affinity), fixed(affinity), atol=1e-5)


def test_more_slots_than_tokens(affinity):
  affinity = jnp.asarray(affinity)
  unlimited = sparse_transport(affinity, S + 5)
  np.testing.assert_array_equal(unlimited, sparse_transport(affinity, S))


def test_unknown_solver(affinity):
  with pytest.raises(ValueError, match=r"solver='newton'.*\['adam', 'entr"):
    sparse_transport(jnp.asarray(affinity), 2, solver="newton")
