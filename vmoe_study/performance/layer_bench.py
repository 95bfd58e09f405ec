"""What a MoE layer costs beside the matrix products of its experts.

Two lower bounds are timed with every router: the experts alone, on tensors
that are dispatched already, and a dense MLP on the same tokens.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vmoe_study.nn.mlp import Mlp
from vmoe_study.nn.moe import Moe, MoeOptions, make_experts
from vmoe_study.nn.router import ROUTERS, SoftRouter, make_router
from vmoe_study.performance.timing import interleaved_seconds, paired_ratio
from vmoe_study.routing.capacity import expert_capacity

PASSES = ("forward", "forward_backward")
EXPERTS_ONLY, DENSE = "experts only", "dense MLP"


@dataclasses.dataclass(frozen=True)
class LayerShape:
  """The layer that is timed.

  Attributes:
    images: B.
    tokens: L, per image.
    width: D.
    mlp_dim: F.
    num_experts: E.
    dtype: of tokens and experts.
  """

  images: int = 8
  tokens: int = 196
  width: int = 384
  mlp_dim: int = 1536
  num_experts: int = 32
  dtype: str = "float32"

  def input(self) -> jax.Array:
    shape = self.images, self.tokens, self.width
    return jax.random.normal(jax.random.key(0), shape).astype(self.dtype)


@dataclasses.dataclass(frozen=True)
class Case:
  """One candidate: a module, its input, and the row that it makes."""

  name: str
  module: nn.Module
  input: jax.Array
  row: dict[str, Any]
  params: Any

  def output(self, params: Any, x: jax.Array) -> jax.Array:
    found = self.module.apply(params, x, True)
    return found[0] if isinstance(found, tuple) else found


def _case(
  name: str, module: nn.Module, x: jax.Array, row: dict[str, Any]
) -> Case:
  """With random parameters: drawn, where to initialise would be compiled."""
  init = lambda x: module.init(jax.random.key(1), x, True)  # noqa: E731
  shapes = jax.eval_shape(init, x)
  random = np.random.default_rng(0)

  def draw(leaf):
    if not leaf.ndim:
      return jnp.ones(())
    values = random.standard_normal(leaf.shape, dtype=np.float32)
    return jnp.asarray(values * leaf.shape[-2 if leaf.ndim > 1 else -1] ** -0.5)

  return Case(name, module, x, row, jax.tree.map(draw, shapes))


def cases(
  shape: LayerShape,
  group_images: int,
  capacity: float,
  routers: Sequence[str],
  forms: Sequence[str],
) -> Iterator[Case]:
  """The two lower bounds, then every router in every plan form it has."""
  groups = shape.images // group_images
  slots = expert_capacity(
    group_images * shape.tokens, shape.num_experts, capacity
  )
  dispatched = jnp.ones(
    (shape.num_experts, groups, slots, shape.width), shape.dtype
  )
  experts = make_experts(shape.mlp_dim, dtype=shape.dtype)
  yield _case(EXPERTS_ONLY, experts, dispatched, {})
  yield _case(DENSE, Mlp(shape.mlp_dim, dtype=shape.dtype), shape.input(), {})
  for router in routers:
    has_forms = ROUTERS[router].router is not SoftRouter
    for form in forms if has_forms else ("dense",):
      options = {"num_experts": shape.num_experts, "capacity_factor": capacity}
      options |= {"plan_form": form} if has_forms else {}
      moe = MoeOptions(router, options, group_images=group_images)
      layer = Moe(moe, shape.mlp_dim, dtype=shape.dtype)
      row = {"router": router, "form": form, "group_images": group_images}
      row["capacity"] = capacity
      yield _case(f"{router} {form}", layer, shape.input(), row)


def measure(
  candidates: Sequence[Case],
  rounds: int,
  progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
  """Rows of every router and pass, with ratios to both lower bounds."""
  rows = []
  for which in PASSES:
    compiled = {}
    for case in candidates:
      progress(f"compiling {case.name}, {which}")
      function = _forward_backward(case) if which != "forward" else case.output
      arguments = case.params, case.input
      compiled[case.name] = jax.jit(function).lower(*arguments).compile()
    calls = {
      case.name: functools.partial(compiled[case.name], case.params, case.input)
      for case in candidates
    }
    progress(f"timing {len(calls)} layers, {which}")
    seconds = interleaved_seconds(calls, rounds)
    rows += [
      case.row
      | {
        "pass": which,
        "ms": 1e3 * float(sorted(seconds[case.name])[rounds // 2]),
        "ratio_experts_only": paired_ratio(seconds, case.name, EXPERTS_ONLY),
        "ratio_dense": paired_ratio(seconds, case.name, DENSE),
      }
      | _compiled_cost(compiled[case.name], compiled[EXPERTS_ONLY])
      for case in candidates
      if case.row
    ]
  return rows


def breakdown(case: Case, rounds: int) -> dict[str, float]:
  """Milliseconds of the parts of a router's layer, forward, one by one."""
  layer, x, params = case.module, case.input, case.params["params"]
  router = make_router(layer.moe.router, **layer.moe.options)
  router_params = {"params": params.get("Router", {})}
  experts = make_experts(layer.mlp_dim, dtype=layer.dtype)
  tokens = x.reshape(-1, layer.moe.group_images * x.shape[1], x.shape[2])
  slots = router.capacity(tokens.shape[1])

  # Called with what another part returned, in the layer's order.
  parts: dict[str, Callable] = {
    "router": lambda x: router.apply(router_params, x, True, method="logits"),
    "solver": lambda x: router.affinity(x.clean, slots),
    "plan": lambda x: router.route(x)[0],
    "dispatch": lambda plan, x: plan.dispatch(x),
    "experts": lambda x: experts.apply({"params": params["Mlp"]}, x, True),
    "combine": lambda plan, y: plan.combine(y),
  }
  if not hasattr(router, "affinity"):
    del parts["solver"]
  run = {name: jax.jit(part) for name, part in parts.items()}
  logits = run["router"](tokens)
  plan = run["plan"](logits)
  inputs = run["dispatch"](plan, tokens)
  arguments = {
    "router": (tokens,),
    "solver": (logits,),
    "plan": (logits,),
    "dispatch": (plan, tokens),
    "experts": (inputs,),
    "combine": (plan, inputs),
  }
  calls = {
    name: functools.partial(function, *arguments[name])
    for name, function in run.items()
  }
  seconds = interleaved_seconds(calls, rounds)
  found = {k: 1e3 * float(sorted(v)[rounds // 2]) for k, v in seconds.items()}
  plan_ms = found.pop("plan")
  solver_ms = min(found.pop("solver", 0.0), plan_ms)
  return found | {"solver": solver_ms, "choice": plan_ms - solver_ms}


def _forward_backward(case: Case) -> Callable:
  def loss(params, x):
    return jnp.mean(case.output(params, x) ** 2)

  return jax.value_and_grad(loss, argnums=(0, 1))


def _compiled_cost(compiled, experts_only) -> dict[str, float]:
  peak, base = _peak_bytes(compiled), _peak_bytes(experts_only)
  cost = compiled.cost_analysis()
  return {
    "peak_bytes": peak,
    "ratio_peak_bytes": peak / base,
    "flops": cost["flops"],
    "bytes": cost["bytes accessed"],
  }


def _peak_bytes(compiled) -> int:
  memory = compiled.memory_analysis()
  return int(
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  )
