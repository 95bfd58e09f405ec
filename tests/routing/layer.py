"""A small mixture-of-experts layer with any router, for the tests."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_study.nn.router import RouterLogits
from vmoe_study.nn.zoo import ROUTERS, make_router

WIDTH = 8


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
  """Tokens, noise, and parameters of the router and its experts."""

  params: Any
  x: np.ndarray
  noise: np.ndarray


def draw(name, setting, seed=0, logit_std=1.0) -> Data:
  """Random data; sparse logits have about the given standard deviation."""
  rng = np.random.default_rng(seed)

  def normal(shape, std=1.0):
    return (std * rng.normal(size=shape)).astype(np.float32)

  shape = setting.groups, setting.tokens, WIDTH
  variables, logits = jax.eval_shape(
    functools.partial(_logits, router_of(name, setting)),
    jax.ShapeDtypeStruct(shape, jnp.float32),
  )
  router = jax.tree.map(
    lambda p: normal(p.shape, logit_std / WIDTH**0.5), variables
  )
  num_experts = logits.shape[2]
  experts = normal((num_experts, WIDTH, WIDTH), WIDTH**-0.5)
  noise = normal(logits.shape, 1 / num_experts)
  x = normal(shape).astype(setting.dtype)
  return Data({"router": router, "experts": experts}, x, noise)


def _logits(router, x):
  logits, variables = router.init_with_output(
    jax.random.key(0), x, True, method="logits"
  )
  return variables.get("params", {}), logits.clean


def forward(router, params, x, noise):
  """Routes, applies a different nonlinear map per expert, and combines."""
  logits = router.apply({"params": params["router"]}, x, True, method="logits")
  plan, aux = router.route(RouterLogits(logits.clean, noise))
  experts = params["experts"].astype(x.dtype)
  outputs = jnp.einsum("EGCD,EDF->EGCF", plan.dispatch(x), experts)
  return plan.combine(jnp.tanh(outputs)), plan, aux


def loss(router, params, x, noise):
  """Depends on the output of every token and on all auxiliary losses."""
  y, plan, aux = forward(router, params, x, noise)
  target = jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
  error = jnp.mean((y.astype(jnp.float32) - target) ** 2)
  return error + aux.auxiliary_loss.sum(), (y, plan, aux)


@functools.cache
def _compiled(name, setting):
  def run(params, x, noise):
    outcomes = {}
    for form in plan_forms(name):
      router = router_of(name, setting, plan_form=form)
      function = functools.partial(loss, router)
      grad = jax.grad(function, argnums=(0, 1), has_aux=True)
      grads, (y, plan, aux) = grad(params, x, noise)
      outcomes[form] = {
        "dispatch": plan.dispatch_tensor(),
        "combine": plan.combine_tensor(),
        "tokens_per_expert": plan.tokens_per_expert(),
        "experts_per_token": plan.experts_per_token(),
        "y": y,
        "aux": aux,
        "grads": grads,
      }
    return outcomes

  return jax.jit(run)


def run(name, setting, data: Data) -> dict[str, dict[str, Any]]:
  """Both routing tensors, load, output, aux and gradients, by plan form."""
  return _compiled(name, setting)(data.params, data.x, data.noise)
