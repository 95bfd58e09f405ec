"""Routers against arrays computed by the public V-MoE code.

tests/data/reference/README.txt explains the arrays.
"""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.nn.router import RouterLogits
from vmoe_study.nn.zoo import make_router
from vmoe_study.routing.affinity import RowSparseTransport, SparseTransport
from vmoe_study.routing.sinkhorn import sinkhorn
from vmoe_study.routing.soft import slot_logits
from vmoe_study.routing.sparse_transport import SOLVERS, transport_at

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "reference"
FILES = {
  file.stem: np.load(file)
  for pattern in ("router_*.npz", "rowsparse_tc_*.npz")
  for file in sorted(FOLDER.glob(pattern))
}
ROUTERS = {
  "softmax_tc": "softmax_token_choice",
  "sinkhorn_tc": "sinkhorn_token_choice",
  "softmax_ec": "softmax_expert_choice",
  "sinkhorn_ec": "sinkhorn_expert_choice",
  "sparsity_ec": "sparsity_constrained_expert_choice",
  "soft": "soft",
}
TAG = re.compile(
  r"(noisy_)?(?:k(?P<K>\d)_bpr(?P<priority>\d)_)?"
  r"C(?P<factor>\d)_(?P<rounding>[a-z]+)(?P<multiple>\d)"
)


def _cases(pattern):
  """(file, match) for every array whose whole name matches."""
  return [
    pytest.param(
      file,
      match,
      id=f"{file}-{match.string.replace('/', '-')}",
      marks=[pytest.mark.slow] * ("_t49_" in file),  # The larger shapes.
    )
    for file, arrays in FILES.items()
    for name in arrays.files
    if (match := re.fullmatch(pattern, name))
  ]


def _options(reference, tag):
  """Router options that a tag like k2_bpr1_C1_round1 stands for."""
  match = TAG.fullmatch(tag)
  options = {
    "num_experts": reference["W"].shape[1],
    "capacity_factor": float(match["factor"]),
    "capacity_rounding": match["rounding"],
    "capacity_multiple_of": int(match["multiple"]),
  }
  if match["K"]:
    options["num_selected_experts"] = int(match["K"])
    options["batch_priority"] = match["priority"] == "1"
  return options


def _apply(reference, router):
  params = {"params": {"dense": {"kernel": reference["W"]}}}
  return router.apply(params, reference["X"])


def _noisy(reference):
  noise = reference["noise_std_effective"] * reference["noise_unit"]
  return RouterLogits(jnp.asarray(reference["logits"]), jnp.asarray(noise))


def _assert_same(plan, dispatch, combine, tolerance=1e-5):
  """The same tokens and weights in every expert, and in the same slots.

  Scores that are equal but for rounding may swap a slot or two.
  """
  ours = np.asarray(plan.dispatch_tensor())
  np.testing.assert_array_equal(ours.sum(axis=3), dispatch.sum(axis=3))
  np.testing.assert_allclose(
    plan.combine_tensor().sum(axis=3), combine.sum(axis=3), atol=tolerance
  )
  assert np.sum(ours != dispatch) <= 4


@pytest.mark.parametrize(
  "file, case", _cases(r"(\w+_[te]c)/(?!noisy)([^/]*C\d_\w+\d)/dispatch")
)
def test_plans_without_noise(file, case):
  reference, (router, tag) = FILES[file], case.groups()
  options = _options(reference, tag)
  plan, _ = _apply(reference, make_router(ROUTERS[router], **options))
  combine = reference[f"{router}/{tag}/combine"]
  _assert_same(plan, reference[case.string], combine)


@pytest.mark.parametrize(
  "file, case", _cases(r"(sinkhorn_[te]c)/(.*)/combine_plan_weights")
)
def test_plans_that_weigh_by_sinkhorn(file, case):
  reference, (router, tag) = FILES[file], case.groups()
  options = _options(reference, tag) | {"weights": "transport"}
  plan, _ = _apply(reference, make_router(ROUTERS[router], **options))
  dispatch = reference[f"{router}/{tag}/dispatch"]
  _assert_same(plan, dispatch, reference[case.string], tolerance=1e-4)


@pytest.mark.parametrize(
  "file, case", _cases(r"(\w+_[te]c)/(noisy_\w+)/dispatch")
)
def test_plans_with_noise(file, case):
  reference, (router, tag) = FILES[file], case.groups()
  module = make_router(ROUTERS[router], **_options(reference, tag))
  plan, _ = module.route(_noisy(reference))
  combine = reference[f"{router}/{tag}/combine"]
  _assert_same(plan, reference[case.string], combine)


@pytest.mark.parametrize(
  "file, case", _cases(r"(\w+_tc)/(noisy|det)_k(\d)/auxiliary_loss")
)
def test_losses(file, case):
  reference, (router, mode, K) = FILES[file], case.groups()
  folder = f"{router}/{mode}_k{K}/"
  names = [n.removeprefix(folder) for n in reference.files if folder in n]
  weights = {f"{n}_weight": 1.0 for n in names if n != "auxiliary_loss"}
  options = {"num_experts": reference["W"].shape[1]} | weights
  options["num_selected_experts"] = int(K)
  module = make_router(ROUTERS[router], **options)
  if mode == "noisy":
    _, aux = module.route(_noisy(reference))
  else:
    _, aux = _apply(reference, module)
  losses = aux.losses | {"auxiliary_loss": aux.auxiliary_loss}
  assert ("load_loss" in losses) == (mode == "noisy")
  for name in names:
    expected = reference[folder + name]
    np.testing.assert_allclose(losses[name], expected, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("file", [f for f in FILES if "router" in f])
def test_sinkhorn(file):
  reference = FILES[file]
  transport_plan = sinkhorn(jnp.asarray(reference["logits"]))
  for name in ("plan20_scaling", "plan20_log", "plan20_float64"):
    expected = reference[f"sinkhorn/{name}"]
    np.testing.assert_allclose(transport_plan, expected, atol=1e-5)
  noisy = sinkhorn(jnp.asarray(reference["logits_noisy"]))
  expected = reference["sinkhorn/plan20_scaling_noisy"]
  np.testing.assert_allclose(noisy, expected, atol=1e-5)
  converged = sinkhorn(jnp.asarray(reference["logits"]), 1000)
  expected = reference["sinkhorn/plan_converged_float64"]
  np.testing.assert_allclose(converged, expected, atol=1e-5)


SPARSE = r"sparsity_ec/(C\d_\w+\d)/"
# One program for all numbers of steps.
ADAM = jax.jit(SOLVERS["adam"], static_argnums=(1, 3))


@pytest.mark.parametrize(
  "file, case", _cases(SPARSE + r"alpha_(?:maxiter|iter)(\d+)")
)
def test_adam_takes_the_authors_steps(file, case):
  reference, (tag, steps) = FILES[file], case.groups()
  capacity = reference[f"sparsity_ec/{tag}/maxiter20/dispatch"].shape[-1]
  affinity = jnp.asarray(reference["softmax"])
  alpha = ADAM(affinity, capacity, int(steps))
  np.testing.assert_allclose(alpha, reference[case.string], atol=1e-5)


@pytest.mark.parametrize("file, case", _cases(SPARSE + r"plan_maxiter(\d+)"))
def test_sparse_transport_plans(file, case):
  reference, (tag, steps) = FILES[file], case.groups()
  capacity = reference[f"sparsity_ec/{tag}/maxiter20/dispatch"].shape[-1]
  logits = jnp.asarray(reference["logits"])
  transport_plan = SparseTransport(int(steps))(logits, capacity)
  expected = reference[case.string]
  np.testing.assert_allclose(transport_plan, expected, atol=1e-5)

  alpha = jnp.asarray(reference[f"sparsity_ec/{tag}/alpha_maxiter{steps}"])
  transport_plan = transport_at(alpha, jax.nn.softmax(logits), capacity)
  np.testing.assert_allclose(transport_plan, expected, atol=1e-5)


@pytest.mark.parametrize(
  "file, case", _cases(SPARSE + r"maxiter(\d+)/(combine\w*)")
)
def test_plans_by_sparse_transport(file, case):
  reference, (tag, steps, kind) = FILES[file], case.groups()
  options = _options(reference, tag) | {"num_iterations": int(steps)}
  if kind == "combine_plan_weights":
    options["weights"] = "transport"
  router = make_router(ROUTERS["sparsity_ec"], **options)
  plan, _ = _apply(reference, router)
  dispatch = reference[f"sparsity_ec/{tag}/maxiter{steps}/dispatch"]
  _assert_same(plan, dispatch, reference[case.string])


@pytest.mark.parametrize("file, case", _cases(r"k(\d)/alpha_iter(\d+)"))
def test_adam_takes_the_authors_steps_for_experts(file, case):
  """The dual variable of at most K experts per token, one entry per expert."""
  reference, (K, steps) = FILES[file], map(int, case.groups())
  affinity = jnp.asarray(reference["softmax"]).swapaxes(1, 2)
  row_mass = affinity.shape[2] / affinity.shape[1]
  alpha = ADAM(affinity, K, steps, row_mass)
  np.testing.assert_allclose(alpha, reference[case.string], atol=1e-5)
  if steps == 20:
    transport_plan = RowSparseTransport()(reference["logits"], 1, K)
    expected = reference[f"k{K}/plan20"]
    np.testing.assert_allclose(transport_plan, expected, atol=1e-5)
    found = transport_at(reference[case.string], affinity, K, row_mass)
    np.testing.assert_allclose(found.swapaxes(1, 2), expected, atol=1e-5)


@functools.cache
def _row_sparse(**options):
  """Plans that weigh by softmax and by transport; a gradient of the first."""

  def loss(kernel, x, cotangent):
    params = {"params": {"dense": {"kernel": kernel}}}
    plans = [
      make_router(
        "sparsity_constrained_token_choice", **options, weights=weights
      ).apply(params, x)[0]
      for weights in ("softmax", "transport")
    ]
    combined = plans[0].combine_tensor().sum(axis=3)
    return jnp.sum(cotangent * combined), plans

  return jax.jit(jax.grad(loss, has_aux=True))


@pytest.mark.slow
@pytest.mark.parametrize(
  "file, case",
  [
    case
    for case in _cases(r"(k\d_bpr\d_C\d_\w+\d)/dispatch")
    if not re.search("_t16_.*ceil4", case.id)  # C is a multiple of 4 anyway.
  ],
)
def test_sparsity_constrained_token_choice(file, case):
  reference, tag = FILES[file], case[1]
  run = _row_sparse(**_options(reference, tag))
  gradient, plans = run(*(reference[name] for name in ("W", "X", "cotangent")))
  for plan, kind in zip(
    plans, ("combine", "combine_plan_weights"), strict=True
  ):
    combine = reference[f"{tag}/{kind}"]
    _assert_same(plan, reference[case.string], combine)
  expected = reference[f"{tag}/grad_W"]
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("file, case", _cases(r"soft/(C\d_\w+\d)/mu"))
def test_soft(file, case):
  reference, tag = FILES[file], case[1]
  arrays = {
    name: reference[f"soft/{tag}/{name}"]
    for name in ("mu", "scale", "logits", "dispatch", "combine")
  }
  x, mu, scale = reference["X"], arrays["mu"], arrays["scale"]
  logits = slot_logits(x, mu, scale)
  np.testing.assert_allclose(logits, arrays["logits"], atol=1e-5)
  router = make_router("soft", **_options(reference, tag))
  plan, _ = router.apply({"params": {"mu": mu, "scale": scale}}, x)
  np.testing.assert_allclose(
    plan.dispatch_tensor(), arrays["dispatch"], atol=1e-5
  )
  np.testing.assert_allclose(
    plan.combine_tensor(), arrays["combine"], atol=1e-5
  )
