"""The routers: Flax modules from tokens to a routing plan.

A router has two methods. `logits` computes router logits and holds all
parameters. `route` is a pure function from these logits to a plan, so that it
can run inside `jax.shard_map`. A sparse router combines an affinity with a
choice: to add one, write an affinity or a choice and add a row to `ROUTERS`.

>>> from vmoe_study import ROUTERS
>>> "softmax_expert_choice" in ROUTERS
True
>>> ROUTERS["soft"].options()["num_experts"]
<class 'int'>
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
from vmoe_study.routing.plan import RoutingPlan, best_plan_form
from vmoe_study.routing.soft import slot_logits, soft_choice


class RouterLogits(NamedTuple):
  """Router logits, float32.

  Attributes:
    clean: logits without noise; sparse routers have one per expert, Soft MoE
      one per slot.
    noise: what is added to them in training; None for no noise.
  """

  clean: Float[Array, "G S ..."]
  noise: Float[Array, "G S ..."] | None = None

  @property
  def noisy(self) -> Float[Array, "G S ..."]:
    """The sum of both: the logits by which the router chooses."""
    return self.clean if self.noise is None else self.clean + self.noise

  def as_float32(self) -> "RouterLogits":
    """Casts array-likes to float32 JAX arrays."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self)


class Router(CheckedModule, abc.ABC):
  """Maps tokens (G, S, D) of any float dtype to a plan and its `RoutingAux`.

  Attributes:
    num_experts: E.
    noise_std: standard deviation of the Gaussian noise on the logits in
      training; sparse routers divide it by E. Needs the RNG stream "router".
  """

  num_experts: int
  noise_std: float = 0.0

  @abc.abstractmethod
  def logits(
    self, x: Float[Array, "G S D"], deterministic: bool
  ) -> RouterLogits:
    """Computes router logits. Holds all parameters."""

  @abc.abstractmethod
  def route(
    self, logits: RouterLogits
  ) -> tuple[RoutingPlan, balance.RoutingAux]:
    """Makes a plan of the logits, in float32.

    Pure: uses no parameters and no random numbers.
    """

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
  """Affinity x choice: the affinity scores tokens, the choice selects by them.

  Attributes:
    affinity: maps logits to scores.
    choice: maps scores and weights to an index plan.
    capacity_factor: slots per choice of a token, see `expert_capacity`.
    capacity_rounding: "round" (half to even) or "ceil".
    capacity_multiple_of: C is rounded up to a multiple of this.
    weights: what scales the expert outputs: "softmax", the softmax
      probabilities of the logits, not renormalised over the chosen experts; or
      "transport", the scores of the affinity, which include the noise.
    noisy_weights: whether the softmax probabilities include the noise.
    plan_form: "index" copies rows, "dense" multiplies by the routing tensors,
      "auto" takes the faster one, see `routing.plan.best_plan_form`.
    importance_loss_weight: of `balance.importance_loss`.
    load_loss_weight: of `balance.load_loss`, which is defined for token choice,
      in training, with noise.
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
      name="dense",  # Named as in V-MoE's checkpoints.
    )(x)
    std = self.noise_std / self.num_experts
    return RouterLogits(clean, self._noise(clean.shape, std, deterministic))

  @nn.nowrap
  def route(
    self, logits: RouterLogits
  ) -> tuple[RoutingPlan, balance.RoutingAux]:
    logits = logits.as_float32()
    capacity = self.capacity(logits.clean.shape[1])
    if self.weights == "transport":
      weights = scores = self.affinity(logits.noisy, capacity)
    else:
      # Scores carry no gradient here: nothing is stored for the backward pass.
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
    """C for groups of `num_tokens` tokens."""
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
  """Soft MoE: learned slots, each a weighted mean of all tokens.

  Source: arXiv:2308.00951. There is no noise by default. If there is,
  `noise_std` is its standard deviation, not divided by E, as in the public
  implementation.

  Attributes:
    capacity_factor: slots per token.
    capacity_rounding: "round" (half to even) or "ceil".
    capacity_multiple_of: C is rounded up to a multiple of this.
    slots_per_expert: C, instead of deriving it from the number of tokens. Slots
      have parameters: fix C to use a model at several resolutions.
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
    plan = soft_choice(logits.as_float32().noisy)
    return plan, balance.routing_aux(plan, {}, {})

  @nn.nowrap
  def capacity(self, num_tokens: int) -> int:
    """C for groups of `num_tokens` tokens."""
    if self.slots_per_expert is not None:
      return self.slots_per_expert
    return expert_capacity(
      num_tokens,
      self.num_experts,
      self.capacity_factor,
      rounding=self.capacity_rounding,
      multiple_of=self.capacity_multiple_of,
    )


@dataclasses.dataclass(frozen=True)
class RouterSpec:
  """A row of `ROUTERS`: a router's class, its parts and its default options.

  The options of a router are the fields of its class and of its parts.

  Attributes:
    router: the class.
    parts: classes whose instances become fields of the router, by field name.
    defaults: option values that differ from the defaults of the classes.

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
        f"options {twice}: each must be a field of only one of {classes}. "
        "Rename the fields."
      )

  def _fields(self) -> list[dataclasses.Field]:
    classes = self.router, *self.parts.values()
    return [f for part in classes for f in dataclasses.fields(part)]

  def options(self) -> dict[str, Any]:
    """Types of all options, by name."""
    hidden = {"parent", "name", *self.parts}
    return {f.name: f.type for f in self._fields() if f.name not in hidden}

  def default_options(self) -> dict[str, Any]:
    """Values of all options that have a default, by name."""
    found: dict[str, Any] = {}
    for part in (self.router, *self.parts.values()):
      found |= defaults(part)
    found |= self.defaults
    return {name: found[name] for name in self.options() if name in found}

  def make(self, options: dict[str, Any]) -> Router:
    """Makes the router, with each option in the part that defines it."""
    options = self.defaults | options
    parts = {}
    for field, part in self.parts.items():
      names = {f.name for f in dataclasses.fields(part)} & options.keys()
      parts[field] = part(**{name: options.pop(name) for name in names})
    return self.router(**parts, **options)


def sparse(affinity: type, choice: type, **defaults) -> RouterSpec:
  """The row of a sparse router.

  Args:
    affinity: its class, a dataclass like those in `routing.affinity`.
    choice: its class, a dataclass like those in `routing.choice`.
    **defaults: option values that differ from the defaults of the classes.

  Example:
    >>> import dataclasses
    >>> import jax
    >>> from vmoe_study.nn.router import sparse
    >>> from vmoe_study.routing.choice import ExpertChoice
    >>> @dataclasses.dataclass(frozen=True)
    ... class Sigmoid:
    ...   temperature: float = 1.0
    ...
    ...   def __call__(self, logits, capacity):
    ...     return jax.nn.sigmoid(logits / self.temperature)
    >>> spec = sparse(Sigmoid, ExpertChoice, noise_std=1.0)
    >>> router = spec.make({"num_experts": 4, "temperature": 0.5})
    >>> router.affinity, router.noise_std
    (Sigmoid(temperature=0.5), 1.0)
  """
  parts = {"affinity": affinity, "choice": choice}
  return RouterSpec(SparseRouter, parts, defaults)


# In the public implementation, Sinkhorn token choice alone scales outputs by
# the probabilities of the logits without noise: hence its `noisy_weights`.
# Sparsity-constrained token choice is an addition of this project. Its tokens
# go only where their transport plan sends them: otherwise ties of zero scores
# would send most of them to expert 0.
ROUTERS: dict[str, RouterSpec] = {
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
  """Makes a router, a Flax module, by name.

  Args:
    router: a key of `ROUTERS`.
    **options: fields of the router, its affinity and its choice; numbers may be
      NumPy scalars.

  Returns:
    A module that maps tokens (G, S, D) of any float dtype to a `RoutingPlan`
    with float32 weights and a float32 `RoutingAux`.

  Raises:
    ValueError: for an unknown router or option, a value of the wrong type or
      out of range, or a missing option without default.

  Example:
    >>> import jax
    >>> from vmoe_study import make_router
    >>> router = make_router("softmax_expert_choice", num_experts=4)
    >>> x = jax.random.normal(jax.random.key(0), (2, 16, 8))  # (G, S, D)
    >>> params = router.init(jax.random.key(1), x)
    >>> plan, aux = router.apply(params, x)
    >>> inputs = plan.dispatch(x)
    >>> inputs.shape  # (E, G, C, D)
    (4, 2, 4, 8)
    >>> plan.combine(inputs).shape
    (2, 16, 8)
    >>> aux.tokens_per_expert.tolist()
    [[4.0, 4.0, 4.0, 4.0], [4.0, 4.0, 4.0, 4.0]]
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
    raise ValueError(f"{router}.{option}: must be given.")
  choices = all_options.get("num_selected_experts", 1)
  experts = all_options["num_experts"]
  if choices > experts:
    raise ValueError(
      f"{router}.num_selected_experts={choices}: must be from 1 to "
      f"num_experts={experts}. Lower K or add experts."
    )
  return ROUTERS[router].make(options)
