"""Benchmark of an MoE layer: its overhead over the experts' matrix products.

Two lower bounds are timed along with the routers: the experts alone, on inputs
that are already dispatched, and a dense MLP on the same tokens. The pass
"forward" is that of evaluation; "forward_backward" is that of training, with
noise and with the choice of training where it differs.
"""

import dataclasses
import functools
import itertools
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vmoe_study.nn import parameter_names as names
from vmoe_study.nn.mlp import Mlp, apply_mlp
from vmoe_study.nn.moe import Moe, MoeOptions, make_experts
from vmoe_study.nn.zoo import ROUTERS, RouterSpec, make_router
from vmoe_study.performance.bench_shapes import LayerShape
from vmoe_study.performance.timing import interleaved_seconds, paired_ratio
from vmoe_study.routing.capacity import expert_capacity
from vmoe_study.routing.exchange import Exchange
from vmoe_study.routing.grouped import grouped_layer

PASSES = ("forward", "forward_backward")
EXPERTS_ONLY, DENSE = "experts only", "dense MLP"


@dataclasses.dataclass(frozen=True)
class Case:
  """A module to be timed, with its input and parameters.

  Attributes:
    name: unique name.
    module: called with (input, deterministic).
    input: its input.
    row: fields that identify its rows in the result; empty for a lower bound.
    params: random parameters.
  """

  name: str
  module: nn.Module
  input: jax.Array
  row: dict[str, Any]
  params: Any

  def forward(
    self, params: Any, x: jax.Array, key: jax.Array | None = None
  ) -> jax.Array:
    """The layer's output without its aux; training mode if there is a key."""
    rngs = {} if key is None else {"router": key}
    y = self.module.apply(params, x, key is None, rngs=rngs)
    return y[0] if isinstance(y, tuple) else y

  def forward_backward(
    self, params: Any, x: jax.Array, key: jax.Array
  ) -> tuple[jax.Array, Any]:
    """A loss in training mode, and its gradients."""

    def loss(params, x):
      return jnp.mean(self.forward(params, x, key) ** 2)

    return jax.value_and_grad(loss, argnums=(0, 1))(params, x)


def _case(
  name: str, module: nn.Module, x: jax.Array, row: dict[str, Any]
) -> Case:
  """Makes a case; drawing parameters is faster than compiling `init`."""
  init = lambda x: module.init(jax.random.key(1), x, True)  # noqa: E731
  shapes = jax.eval_shape(init, x)
  random = np.random.default_rng(0)

  def draw(leaf):
    if not leaf.ndim:
      return jnp.ones(())
    values = random.standard_normal(leaf.shape, dtype=np.float32)
    return jnp.asarray(values * leaf.shape[-2 if leaf.ndim > 1 else -1] ** -0.5)

  return Case(name, module, x, row, jax.tree.map(draw, shapes))


def _input(shape: LayerShape) -> jax.Array:
  size = shape.images, shape.tokens, shape.width
  return jax.random.normal(jax.random.key(0), size).astype(shape.dtype)


def make_cases(
  shape: LayerShape,
  group_images: int,
  capacity: float,
  routers: Sequence[str],
  plan_forms: Sequence[str],
) -> Iterator[Case]:
  """The two lower bounds, then every router in each of its plan forms."""
  groups = shape.images // group_images
  slots = expert_capacity(
    group_images * shape.tokens, shape.num_experts, capacity
  )
  dispatched = jnp.ones(
    (shape.num_experts, groups, slots, shape.width), shape.dtype
  )
  experts = make_experts(shape.mlp_dim, dtype=shape.dtype)
  yield _case(EXPERTS_ONLY, experts, dispatched, {})
  yield _case(DENSE, Mlp(shape.mlp_dim, dtype=shape.dtype), _input(shape), {})
  for router in routers:
    spec = ROUTERS[router]
    for form in _forms(spec, plan_forms):
      options = {"capacity_factor": capacity, "plan_form": form}
      options = {k: v for k, v in options.items() if k in spec.options()}
      options["num_experts"] = shape.num_experts
      moe = MoeOptions(router, options, group_images=group_images)
      layer = Moe(moe, shape.mlp_dim, dtype=shape.dtype)
      row = {"router": router, "form": form, "group_images": group_images}
      row["capacity"] = capacity
      yield _case(f"{router} {form}", layer, _input(shape), row)


def _forms(spec: RouterSpec, plan_forms: Sequence[str]) -> Sequence[str]:
  if "plan_form" in spec.options():
    return plan_forms
  return ("grouped",) if spec.router.is_dropless else ("dense",)


def bench_layer(
  shape: LayerShape,
  group_sizes: Sequence[int],
  capacities: Sequence[float],
  routers: Sequence[str],
  plan_forms: Sequence[str],
  rounds: int,
  progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
  """Times every router, plan form, group size and capacity factor.

  Args:
    shape: sizes of the layer.
    group_sizes: images per group.
    capacities: capacity factors.
    routers: names in `ROUTERS`.
    plan_forms: "index", "dense" or both. Soft MoE has only the dense form;
      dropless routing uses no plan and is listed as "grouped".
    rounds: number of timings of each layer.
    progress: called with messages.

  Returns:
    JSON-able: shape, device, machine, JAX version, and under "rows" one row per
    layer and pass.
  """
  rows: list[dict[str, Any]] = []
  for group_images, capacity in itertools.product(group_sizes, capacities):
    progress(f"groups of {group_images} images, capacity factor {capacity:g}")
    cases = list(make_cases(shape, group_images, capacity, routers, plan_forms))
    measured = measure(cases, rounds, progress)
    progress("timing the parts of each layer")
    parts = {
      (case.row["router"], case.row["form"]): breakdown(case, rounds)
      for case in cases
      if case.row
    }
    for row in measured:
      row["breakdown_ms"] = parts[row["router"], row["form"]]
    rows += measured
  return {
    "shape": dataclasses.asdict(shape),
    "device": jax.devices()[0].device_kind,
    "machine": platform.machine(),
    "jax": jax.__version__,
    "rows": rows,
  }


def measure(
  cases: Sequence[Case],
  rounds: int,
  progress: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
  """One row per router and pass, with ratios to both lower bounds."""
  rows = []
  for which in PASSES:
    compiled, calls = {}, {}
    for case in cases:
      progress(f"compiling {case.name}, {which}")
      arguments = [case.params, case.input]
      if which == "forward_backward":
        arguments.append(jax.random.key(2))
      function = jax.jit(getattr(case, which))
      compiled[case.name] = function.lower(*arguments).compile()
      calls[case.name] = functools.partial(compiled[case.name], *arguments)
    progress(f"timing {len(calls)} layers, {which}")
    seconds = interleaved_seconds(calls, rounds)
    rows += [
      case.row
      | {
        "pass": which,
        "ms": _median_ms(seconds[case.name]),
        "ratio_experts_only": paired_ratio(seconds, case.name, EXPERTS_ONLY),
        "ratio_dense": paired_ratio(seconds, case.name, DENSE),
      }
      | _compiled_cost(compiled[case.name], compiled[EXPERTS_ONLY])
      for case in cases
      if case.row
    ]
  return rows


def _median_ms(seconds: Float[np.ndarray, "rounds"]) -> float:
  return 1e3 * float(sorted(seconds)[len(seconds) // 2])


def breakdown(case: Case, rounds: int) -> dict[str, float]:
  """Forward time of each part of a routed layer in ms, timed separately.

  "choice" is the time of routing from logits to plan, in training, minus that
  of the affinity ("solver").
  """
  x, group_images = case.input, case.module.moe.group_images
  tokens = x.reshape(-1, group_images * x.shape[1], x.shape[2])
  parts = _parts(case, tokens.shape[1])
  logits = parts["router"](tokens)
  arguments = {
    "router": (tokens,),
    "solver": (logits,),
    "plan": (logits,),
    "grouped": (tokens, logits),
  }
  if "dispatch" in parts:
    plan = parts["plan"](logits)
    inputs = parts["dispatch"](plan, tokens)
    arguments |= {
      "dispatch": (plan, tokens),
      "experts": (inputs,),
      "combine": (plan, inputs),
    }
  calls = {
    name: functools.partial(part, *arguments[name])
    for name, part in parts.items()
  }
  seconds = interleaved_seconds(calls, rounds)
  ms = {name: _median_ms(values) for name, values in seconds.items()}
  plan_ms = ms.pop("plan")
  solver_ms = min(ms.pop("solver", 0.0), plan_ms)
  if "grouped" in ms:  # Dispatch, experts and combine in one, and the plan.
    ms["experts"] = max(ms.pop("grouped") - plan_ms, 0.0)
  return ms | {"solver": solver_ms, "choice": plan_ms - solver_ms}


def _parts(case: Case, group_size: int) -> dict[str, Callable]:
  """The compiled parts of a routed layer, in execution order."""
  layer, params = case.module, case.params["params"]
  router = make_router(layer.moe.router, **layer.moe.options)
  state = case.params.get(names.ROUTER_STATE, {}).get(names.ROUTER, {})
  variables = {
    "params": params.get(names.ROUTER, {}),
    names.ROUTER_STATE: state,
  }
  experts = make_experts(layer.mlp_dim, dtype=layer.dtype)
  slots = router.capacity(group_size)
  parts: dict[str, Callable] = {
    "router": lambda x: router.apply(variables, x, True, method="logits"),
    "solver": lambda x: router.affinity(
      x.clean, slots, router.choice.num_selected_experts
    ),
    "plan": lambda x: router.route(x, deterministic=False)[0],
    "dispatch": lambda plan, x: plan.dispatch(x),
    "experts": lambda x: experts.apply({"params": params[names.MLP]}, x, True),
    "combine": lambda plan, y: plan.combine(y),
  }
  if router.is_dropless:
    del parts["dispatch"], parts["experts"], parts["combine"]
    parts["grouped"] = lambda x, logits: grouped_layer(
      Exchange(), router.route, apply_mlp, params[names.MLP], x, logits
    )[0]
  if not hasattr(router, "affinity"):
    del parts["solver"]
  return {name: jax.jit(part) for name, part in parts.items()}


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
