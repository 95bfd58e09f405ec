"""A small mixture-of-experts layer with any router, and its outcomes.

All outcomes of a router come from one compiled function, applied to a batch of
cases: random tokens, variants of them, and extreme ones.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_study.nn.parameter_names import ROUTER_STATE
from vmoe_study.nn.zoo import ROUTERS, make_router

WIDTH = 8
SEEDS = range(6)
STDS = (0.1, 1.0, 4.0)  # Of the logits, in turn.
EXTREMES = ("huge", "larger", "equal tokens", "zero tokens", "empty expert")


@dataclasses.dataclass(frozen=True)
class Setting:
  """Shapes and options; each is compiled once."""

  groups: int
  tokens: int
  experts: int
  factor: float = 1.0
  selected: int = 1
  priority: bool = False
  dtype: str = "float32"


def router_of(name, setting, **more):
  """The router with all of its losses and, if it has any, its noise."""
  options = {
    "num_experts": setting.experts,
    "noise_std": 1.0,
    "capacity_factor": setting.factor,
    "num_selected_experts": setting.selected,
    "batch_priority": setting.priority,
    "importance_loss_weight": 0.1,
    "load_loss_weight": 0.1,
    "gshard_loss_weight": 0.1,
    "router_z_loss_weight": 0.1,
  }
  valid = ROUTERS[name].options()
  options = {k: v for k, v in (options | more).items() if k in valid}
  return make_router(name, **options)


def plan_forms(name):
  """The plan forms that the router offers."""
  offers = "plan_form" in ROUTERS[name].options()
  return ("index", "dense") if offers else ("only",)


@dataclasses.dataclass
class Data:
  """Tokens, noise, parameters of the router and its experts, router state."""

  params: Any
  state: Any
  x: np.ndarray
  noise: np.ndarray


@functools.cache
def _shapes(name, setting):
  shape = setting.groups, setting.tokens, WIDTH

  def logits(x):
    return router_of(name, setting).init_with_output(
      jax.random.key(0), x, True, method="logits"
    )

  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  found, variables = jax.eval_shape(logits, x)
  return variables, found.clean.shape


def draw(name, setting, seed=0, logit_std=1.0) -> Data:
  """Random data; sparse logits have about the given standard deviation."""
  rng = np.random.default_rng(seed)

  def normal(shape, std=1.0):
    return (std * rng.normal(size=shape)).astype(np.float32)

  shapes, logits_shape = _shapes(name, setting)
  router = jax.tree.map(  # Scalars are factors.
    lambda p: (
      normal(p.shape, logit_std / WIDTH**0.5) if p.ndim else np.ones((), "f")
    ),
    shapes.get("params", {}),
  )
  num_experts = logits_shape[2]
  experts = normal((num_experts, WIDTH, WIDTH), WIDTH**-0.5)
  noise = normal(logits_shape, 1 / num_experts)
  x = normal((setting.groups, setting.tokens, WIDTH))
  state = jax.tree.map(
    lambda p: np.abs(normal(p.shape, 0.1)), shapes.get(ROUTER_STATE, {})
  )
  return Data({"router": router, "experts": experts}, state, x, noise)


def token_order(setting, seed):
  """By which `permuted` cases differ from their `plain` ones."""
  return np.random.default_rng(seed).permutation(setting.tokens)


def _variants(name, setting, seed):
  """A plain case, one with other groups after the first, a permuted one."""
  plain = draw(name, setting, seed, STDS[seed % len(STDS)])
  other = draw(name, setting, seed + 1000)
  other.x[0], other.noise[0] = plain.x[0], plain.noise[0]
  order = token_order(setting, seed)
  yield ("plain", seed), plain
  yield (
    ("other groups", seed),
    dataclasses.replace(other, params=plain.params, state=plain.state),
  )
  yield (
    ("permuted", seed),
    dataclasses.replace(
      plain, x=plain.x[:, order], noise=plain.noise[:, order]
    ),
  )


def _extreme(name, setting, kind):
  data = draw(name, setting, 0, {"huge": 1e2, "larger": 1e4}.get(kind, 1.0))
  if kind == "equal tokens":
    data.x[:] = data.x[:1, :1]
  if kind == "zero tokens":
    data.x[:] = 0
  if kind in ("equal tokens", "zero tokens"):
    data.noise[:] = 0
  if kind == "empty expert":
    data.x[..., 0] = 1
    for kernel in jax.tree.leaves(data.params["router"]):
      if kernel.shape == (WIDTH, setting.experts) and setting.experts > 1:
        kernel[0, 1] = -100
  return (kind, 0), data


def layer(params, x, plan):
  """Dispatches, applies a different nonlinear map per expert, combines."""
  experts = params["experts"].astype(x.dtype)
  outputs = jnp.einsum("EGCD,EDF->EGCF", plan.dispatch(x), experts)
  return plan.combine(jnp.tanh(outputs))


def noisy_logits(router, params, state, x, noise):
  """The logits of a training step with this noise."""
  variables = {"params": params["router"], ROUTER_STATE: state}
  logits = router.apply(variables, x, True, method="logits")
  return logits._replace(noise=noise)


def route(router, params, state, x, noise):
  """The plan of a training step, and its aux."""
  logits = noisy_logits(router, params, state, x, noise)
  return router.route(logits, deterministic=False)


def loss(y, aux):
  """Depends on the output of every token and on all auxiliary losses."""
  target = jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
  error = jnp.mean((y.astype(jnp.float32) - target) ** 2)
  return error + aux.auxiliary_loss.sum()


def _run(name, setting, params, state, x, noise):
  """Outcomes by plan form; routes once."""
  x = x.astype(setting.dtype)

  def losses(params, x):
    router = router_of(name, setting)
    logits = noisy_logits(router, params, state, x, noise)
    plan, aux = router.route(logits, deterministic=False)
    plans, outputs = [plan], [layer(params, x, plan)]
    if len(plan_forms(name)) > 1:
      plans.append(plan.to_dense())
      multiplies = dataclasses.replace(plan, multiplies=True)
      outputs.append(layer(params, x, multiplies))
    clean = logits.clean
    return [loss(y, aux) for y in outputs], (clean, plans, outputs, aux)

  values, gradient, (clean, plans, outputs, aux) = jax.vjp(
    losses, params, x, has_aux=True
  )
  return {
    form: {
      "logits": clean,
      "dispatch": plan.dispatch_tensor(),
      "combine": plan.combine_tensor(),
      "tokens_per_expert": plan.tokens_per_expert(),
      "experts_per_token": plan.experts_per_token(),
      "y": y,
      "aux": vars(aux),  # Not a `RoutingAux`: its shapes are checked.
      "grads": gradient([jnp.float32(i == n) for n in range(len(values))]),
    }
    for i, (form, plan, y) in enumerate(
      zip(plan_forms(name), plans, outputs, strict=True)
    )
  }


@functools.cache
def outcomes(name, setting) -> list[tuple[str, int, Data, str, dict[str, Any]]]:
  """(kind of case, seed, data, plan form, outcome) of all cases.

  An outcome has the logits without noise, both routing tensors, load, output,
  aux and gradients.
  """
  cases = [case for seed in SEEDS for case in _variants(name, setting, seed)]
  cases += [_extreme(name, setting, kind) for kind in EXTREMES]
  arguments = [(d.params, d.state, d.x, d.noise) for _, d in cases]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *arguments)
  run = functools.partial(_run, name, setting)
  found = jax.jit(lambda *a: jax.lax.map(lambda case: run(*case), a))(*stacked)
  found = jax.device_get(found)
  return [
    (kind, seed, data, form, jax.tree.map(lambda leaf, i=i: leaf[i], outcome))
    for form, outcome in found.items()
    for i, ((kind, seed), data) in enumerate(cases)
  ]
