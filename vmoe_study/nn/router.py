"""The router zoo: Flax modules from tokens to a routing plan.

A router has two halves. `logits` holds the parameters. `route` is a pure
function of its result: it can run inside `jax.shard_map`, and it is where
routers differ. A sparse router is an affinity times a choice; to add one,
write its affinity or choice and give it a row in `ROUTERS`.
"""

import abc
import dataclasses
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vmoe_study.nn.checked import CheckedModule
from vmoe_study.nn.parameter_names import SLOT_EMBEDDING
from vmoe_study.options import check_least, check_names, check_type, defaults
from vmoe_study.routing import balance
from vmoe_study.routing.affinity import (
  Affinity,
  Sinkhorn,
  Softmax,
  SparseTransport,
)
from vmoe_study.routing.capacity import expert_capacity
from vmoe_study.routing.choice import Choice, ExpertChoice, TokenChoice
from vmoe_study.routing.plan import IndexPlan, RoutingPlan, best_plan_form
from vmoe_study.routing.soft import slot_logits, soft_choice


class RouterLogits(NamedTuple):
  """Float32 logits, groups leading, and in training their noise."""

  clean: Float[Array, "G S ..."]
  noise: Float[Array, "G S ..."] | None = None

  @property
  def noisy(self) -> Float[Array, "G S ..."]:
    """The logits by which the router picks."""
    return self.clean if self.noise is None else self.clean + self.noise

  def float32(self) -> "RouterLogits":
    """The same as float32 arrays of JAX, given arrays of any kind."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self)


class Router(CheckedModule, abc.ABC):
  """(G, S, D) tokens to a plan and its aux.

  Attributes:
    num_experts: E.
    noise_std: in training, logits get noise of this deviation, in sparse
      routers divided by E, from the rng stream "router".
  """

  num_experts: int
  noise_std: float = 0.0

  @abc.abstractmethod
  def logits(
    self, x: Float[Array, "G S D"], deterministic: bool
  ) -> RouterLogits:
    """Scores of tokens of any float dtype. Holds all parameters."""

  @abc.abstractmethod
  def route(
    self, logits: RouterLogits
  ) -> tuple[RoutingPlan, balance.RoutingAux]:
    """Pure: uses no parameters and no random numbers; computes in float32."""

  def __call__(
    self, x: Float[Array, "G S D"], deterministic: bool = True
  ) -> tuple[RoutingPlan, balance.RoutingAux]:
    return self.route(self.logits(x, deterministic))

  def _noise(self, shape: tuple[int, ...], std: float, deterministic: bool):
    if deterministic or not std:
      return None
    noise = jax.random.normal(self.make_rng("router"), shape, jnp.float32)
    return noise * std


class SparseRouter(Router):
  """Affinity x choice: the affinity scores, the choice picks.

  Attributes:
    affinity: logits to scores.
    choice: scores and weights to an index plan.
    capacity_factor: slots per choice that the tokens of a group make.
    capacity_rounding: "round" (half to even) or "ceil".
    capacity_multiple_of: slots are raised to a multiple of this.
    weights: what scales the outputs: "softmax" probabilities, not
      renormalised, or the scores themselves, the "transport" plan (of softmax
      routers the same probabilities, always with the noise).
    noisy_weights: whether the softmax probabilities see the noise.
    plan_form: "index" moves rows, "dense" multiplies by routing tensors, "auto"
      is the cheaper of them, see `routing.plan.best_plan_form`.
    importance_loss_weight: of `balance.importance_loss`.
    load_loss_weight: of `balance.load_loss`; defined for token choice, in
      training, with noise.
    gshard_loss_weight: of `balance.gshard_loss`.
    router_z_loss_weight: of `balance.router_z_loss`.
  """

  affinity: Affinity = Softmax()
  choice: Choice = ExpertChoice()
  capacity_factor: float = 1.0
  capacity_rounding: Literal["round", "ceil"] = "round"
  capacity_multiple_of: int = 1
  weights: Literal["softmax", "transport"] = "softmax"
  noisy_weights: bool = True
  plan_form: Literal["index", "dense", "auto"] = "index"
  importance_loss_weight: float = 0.0
  load_loss_weight: float = 0.0
  gshard_loss_weight: float = 0.0
  router_z_loss_weight: float = 0.0

  @nn.compact
  def logits(
    self, x: Float[Array, "G S D"], deterministic: bool
  ) -> RouterLogits:
    clean = nn.Dense(
      self.num_experts,
      use_bias=False,
      dtype=jnp.float32,
      precision=jax.lax.Precision.HIGHEST,
      name="dense",
    )(x)
    std = self.noise_std / self.num_experts
    return RouterLogits(clean, self._noise(clean.shape, std, deterministic))

  @nn.nowrap
  def route(
    self, logits: RouterLogits
  ) -> tuple[RoutingPlan, balance.RoutingAux]:
    logits = logits.float32()
    capacity = self.capacity(logits.clean.shape[1])
    if self.weights == "transport":
      weights = scores = self.affinity(logits.noisy, capacity)
    else:
      # Scores only pick: nothing of them is kept for the backward pass.
      scores = self.affinity(jax.lax.stop_gradient(logits.noisy), capacity)
      seen = logits.noisy if self.noisy_weights else logits.clean
      weights = jax.nn.softmax(seen)
    plan = self.choice(scores, weights, capacity=capacity)
    aux = balance.routing_aux(plan, self._losses(logits), self._loss_weights())
    form = self.plan_form
    if form == "auto":
      form = best_plan_form(jax.default_backend(), self.num_experts * capacity)
    return plan if form == "index" else plan.to_dense(), aux

  @nn.nowrap
  def capacity(self, num_tokens: int) -> int:
    """C, in groups of `num_tokens`."""
    return expert_capacity(
      num_tokens,
      self.num_experts,
      self.capacity_factor,
      num_selected_experts=self.choice.num_selected_experts,
      rounding=self.capacity_rounding,
      multiple_of=self.capacity_multiple_of,
    )

  @nn.nowrap
  def _losses(self, logits: RouterLogits) -> dict[str, Array]:
    clean, noisy = logits.clean, logits.noisy
    losses = {
      "importance_loss": balance.importance_loss(jax.nn.softmax(clean)),
      "gshard_loss": balance.gshard_loss(jax.nn.softmax(noisy)),
      "router_z_loss": balance.router_z_loss(clean),
    }
    defined = logits.noise is not None and self.noise_std > 0
    if defined and self.choice.tokens_choose:
      losses["load_loss"] = balance.load_loss(
        clean,
        noisy,
        self.noise_std / self.num_experts,
        self.choice.num_selected_experts,
      )
    return losses

  @nn.nowrap
  def _loss_weights(self) -> dict[str, float]:
    return {
      "importance_loss": self.importance_loss_weight,
      "load_loss": self.load_loss_weight,
      "gshard_loss": self.gshard_loss_weight,
      "router_z_loss": self.router_z_loss_weight,
    }


class SoftRouter(Router):
  """Soft MoE: learned slots, each a mixture of all tokens (2308.00951).

  Without noise by default. If there is any, it is the authors': `noise_std`
  itself is the deviation, which sparse routers divide by E.

  Attributes:
    capacity_factor: slots per token.
    capacity_rounding: "round" (half to even) or "ceil".
    capacity_multiple_of: slots are raised to a multiple of this.
    slots_per_expert: C, if given instead of derived. Slots are parameters, so
      fix C to train and test at different resolutions.
  """

  capacity_factor: float = 1.0
  capacity_rounding: Literal["round", "ceil"] = "round"
  capacity_multiple_of: int = 1
  slots_per_expert: int | None = None

  @nn.compact
  def logits(
    self, x: Float[Array, "G S D"], deterministic: bool
  ) -> RouterLogits:
    shape = x.shape[-1], self.num_experts, self.capacity(x.shape[1])
    mu = self.param(
      SLOT_EMBEDDING, nn.initializers.lecun_normal(), shape, jnp.float32
    )
    scale = self.param("scale", nn.initializers.ones, (), jnp.float32)
    clean = slot_logits(x, mu, scale)
    noise = self._noise(clean.shape, self.noise_std, deterministic)
    return RouterLogits(clean, noise)

  @nn.nowrap
  def route(
    self, logits: RouterLogits
  ) -> tuple[RoutingPlan, balance.RoutingAux]:
    plan = soft_choice(logits.float32().noisy)
    return plan, balance.routing_aux(plan, {}, {})

  @nn.nowrap
  def capacity(self, num_tokens: int) -> int:
    """C, in groups of `num_tokens`."""
    if self.slots_per_expert is not None:
      return self.slots_per_expert
    return expert_capacity(
      num_tokens,
      self.num_experts,
      self.capacity_factor,
      rounding=self.capacity_rounding,
      multiple_of=self.capacity_multiple_of,
    )


class DenseRouter(Router):
  """The baseline as a router: one expert takes every token, in order.

  So that it can stand in for any router, it accepts their common fields.
  """

  num_experts: int = 1

  @nn.nowrap
  def logits(
    self, x: Float[Array, "G S D"], deterministic: bool
  ) -> RouterLogits:
    return RouterLogits(jnp.zeros((*x.shape[:2], 1), jnp.float32))

  @nn.nowrap
  def route(
    self, logits: RouterLogits
  ) -> tuple[RoutingPlan, balance.RoutingAux]:
    num_groups, num_tokens, _ = logits.clean.shape
    tokens = jnp.arange(num_tokens, dtype=jnp.int32)
    tokens = jnp.broadcast_to(tokens, (num_groups, 1, num_tokens))
    weights = jnp.ones(tokens.shape, jnp.float32)
    plan = IndexPlan(tokens, weights, num_tokens, tokens.swapaxes(1, 2))
    return plan, balance.routing_aux(plan, {}, {})


@dataclasses.dataclass(frozen=True)
class RouterSpec:
  """A row of `ROUTERS`: a router's class, its parts and its own defaults.

  Attributes:
    router: the class.
    parts: classes that make fields of it, by the field's name.
    defaults: of options, where they differ from the classes'.

  Raises:
    ValueError: if two of the classes have an option of the same name.
  """

  router: type[Router]
  parts: dict[str, type] = dataclasses.field(default_factory=dict)
  defaults: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    names = [field.name for field in self._fields()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
      classes = [c.__name__ for c in (self.router, *self.parts.values())]
      raise ValueError(
        f"options {twice} are fields of more than one of {classes}: rename "
        "them, so that a name says which is meant."
      )

  def _fields(self) -> list[dataclasses.Field]:
    classes = self.router, *self.parts.values()
    return [f for part in classes for f in dataclasses.fields(part)]

  def options(self) -> dict[str, Any]:
    """Every option by name, with its type."""
    hidden = {"parent", "name", *self.parts}
    return {f.name: f.type for f in self._fields() if f.name not in hidden}

  def default_options(self) -> dict[str, Any]:
    """The default of every option that has one."""
    found: dict[str, Any] = {}
    for part in (self.router, *self.parts.values()):
      found |= defaults(part)
    found |= self.defaults
    return {name: found[name] for name in self.options() if name in found}

  def make(self, options: dict[str, Any]) -> Router:
    """Hands each option to the part that has a field of its name."""
    options = self.defaults | options
    parts = {}
    for field, part in self.parts.items():
      names = {f.name for f in dataclasses.fields(part)} & options.keys()
      parts[field] = part(**{name: options.pop(name) for name in names})
    return self.router(**parts, **options)


def sparse(affinity: type, choice: type, **defaults) -> RouterSpec:
  """The recipe of affinity x choice."""
  parts = {"affinity": affinity, "choice": choice}
  return RouterSpec(SparseRouter, parts, defaults)


# The authors' Sinkhorn token choice, alone among their routers, weighs outputs
# by the probabilities of the logits without noise: kept as its default. In
# sparsity-constrained token choice, which is not theirs, tokens go where their
# transport plan sends them: ties at 0 would send most of them to expert 0.
ROUTERS = {
  "softmax_token_choice": sparse(Softmax, TokenChoice, noise_std=1.0),
  "sinkhorn_token_choice": sparse(
    Sinkhorn, TokenChoice, noise_std=1.0, noisy_weights=False
  ),
  "sparsity_constrained_token_choice": sparse(
    SparseTransport, TokenChoice, fill_zero_scores=False
  ),
  "softmax_expert_choice": sparse(Softmax, ExpertChoice, noise_std=1.0),
  "sinkhorn_expert_choice": sparse(Sinkhorn, ExpertChoice, noise_std=1.0),
  "sparsity_constrained_expert_choice": sparse(SparseTransport, ExpertChoice),
  "soft": RouterSpec(SoftRouter),
  "dense": RouterSpec(DenseRouter),
}


_AT_LEAST = {
  "num_experts": 1,
  "num_selected_experts": 1,
  "num_iterations": 1,
  "slots_per_expert": 1,
  "capacity_multiple_of": 1,
  "noise_std": 0,
  "importance_loss_weight": 0,
  "load_loss_weight": 0,
  "gshard_loss_weight": 0,
  "router_z_loss_weight": 0,
}


def _check_range(where: str, option: str, value: Any) -> None:
  if option in _AT_LEAST and value is not None:
    check_least(where, value, _AT_LEAST[option])
  if option == "capacity_factor" and value <= 0:
    raise ValueError(f"{where}={value!r}: must be above 0.")


def make_router(router: str, /, **options) -> Router:
  """A router of the zoo as a Flax module.

  Args:
    router: a name in `ROUTERS`.
    **options: fields of the router, its affinity and its choice. Numbers may
      be NumPy's.

  Raises:
    ValueError: for an unknown router or option, a value of a wrong type or out
      of its range, or a missing option that has no default.
  """
  check_names("router", [router], ROUTERS)
  valid = ROUTERS[router].options()
  check_names(f"options of router {router!r}", options, valid)
  options = {
    option: value.item() if isinstance(value, np.generic) else value
    for option, value in options.items()
  }
  for option, value in options.items():
    check_type(f"{router}.{option}", value, valid[option])
    _check_range(f"{router}.{option}", option, value)
  all_options = ROUTERS[router].default_options() | options
  for option in sorted(valid.keys() - all_options.keys()):
    raise ValueError(f"option {option!r} of router {router!r} must be given.")
  choices = all_options.get("num_selected_experts", 1)
  experts = all_options["num_experts"]
  if choices > experts:
    raise ValueError(
      f"{router}.num_selected_experts={choices}: a token can choose from 1 to "
      f"num_experts={experts} experts. Lower it or add experts."
    )
  return ROUTERS[router].make(options)
