"""The routers: Flax modules from tokens to a routing plan.

A router has two methods. `logits` computes router logits and holds all
parameters. `route` is a pure function from these logits to a plan, so that it
can run inside `jax.shard_map`. A sparse router combines a rule
for the logits, an affinity and a choice; `nn.zoo` lists all routers.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vmoe_study.nn.checked import CheckedModule
from vmoe_study.nn.logits import LinearLogits, LogitsRule
from vmoe_study.nn.parameter_names import ROUTER_STATE, SLOT_EMBEDDING
from vmoe_study.routing import balance
from vmoe_study.routing import controller as controller_lib
from vmoe_study.routing.affinity import Affinity, Softmax
from vmoe_study.routing.capacity import expert_capacity
from vmoe_study.routing.choice import Choice, ExpertChoice
from vmoe_study.routing.guarantees import Guarantees
from vmoe_study.routing.plan import RoutingPlan, best_plan_form
from vmoe_study.routing.soft import slot_logits, soft_choice


class RouterLogits(NamedTuple):
  """Router logits, float32.

  Attributes:
    clean: logits without noise; sparse routers have one per expert, Soft MoE
      one per slot.
    noise: noise added to the logits in training; None for no noise.
    state: state of the controller, by name, with a copy for each group; None
      without a controller.
  """

  clean: Float[Array, "G S ..."]
  noise: Float[Array, "G S ..."] | None = None
  state: dict[str, Float[Array, "G ..."]] | None = None

  @property
  def noisy(self) -> Float[Array, "G S ..."]:
    """Logits with noise, by which the router chooses."""
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

  is_dropless: ClassVar[bool] = False  # Whether experts have no slots.
  num_experts: int
  noise_std: float = 0.0

  @abc.abstractmethod
  def logits(
    self, x: Float[Array, "G S D"], deterministic: bool
  ) -> RouterLogits:
    """Computes router logits. Holds all parameters."""

  @abc.abstractmethod
  def route(
    self, logits: RouterLogits, deterministic: bool = True
  ) -> tuple[RoutingPlan, balance.RoutingAux]:
    """Makes a plan from the logits, in float32.

    Pure: uses neither parameters nor random numbers. `deterministic` is False
    in training; only balanced assignment depends on it.
    """

  def __call__(
    self, x: Float[Array, "G S D"], deterministic: bool = True
  ) -> tuple[RoutingPlan, balance.RoutingAux]:
    return self.route(self.logits(x, deterministic), deterministic)

  def _noise(self, shape: tuple[int, ...], std: float, deterministic: bool):
    if deterministic or not std:
      return None
    noise = jax.random.normal(self.make_rng("router"), shape, jnp.float32)
    return noise * std


# Weights of the expert outputs as functions of the logits.
WEIGHTS: dict[str, Callable[[Array], Array]] = {
  "softmax": jax.nn.softmax,
  "sigmoid": jax.nn.sigmoid,
  "relu": jax.nn.relu,
  "uniform": jnp.ones_like,
}


class SparseRouter(Router):
  """Affinity x choice: the affinity scores tokens, the choice selects by them.

  Attributes:
    logits_rule: maps tokens to logits.
    affinity: maps logits to scores.
    choice: maps scores and weights to an index plan.
    controller: balances the load by a state in the collection `ROUTER_STATE`;
      None for no controller.
    capacity_factor: slots per choice of a token, see `expert_capacity`.
    capacity_rounding: "round" (half to even) or "ceil".
    capacity_multiple_of: C is rounded up to a multiple of this.
    weights: what scales the expert outputs: a function of the logits
      ("softmax", "sigmoid", "relu", or "uniform" for 1), or "transport", the
      scores of the affinity, which include the noise.
    noisy_weights: whether the logits of the weights include the noise.
    plan_form: "index" copies rows, "dense" multiplies by the routing tensors,
      "auto" takes the faster one, see `routing.plan.best_plan_form`. Kernels
      for TPUs replace both for many shapes, see `routing.slot_kernel`.
    importance_loss_weight: weight of `balance.importance_loss`.
    load_loss_weight: weight of `balance.load_loss`, which is defined for token
      choice, in training, with noise.
    gshard_loss_weight: weight of `balance.gshard_loss`.
    router_z_loss_weight: weight of `balance.router_z_loss`.
  """

  logits_rule: LogitsRule = LinearLogits()
  affinity: Affinity = Softmax()
  choice: Choice = ExpertChoice()
  controller: controller_lib.Controller | None = None
  capacity_factor: float = 1.0
  capacity_rounding: Literal["round", "ceil"] = "round"
  capacity_multiple_of: int = 1
  weights: Literal["softmax", "sigmoid", "relu", "uniform", "transport"] = (
    "softmax"
  )
  noisy_weights: bool = True
  plan_form: Literal["index", "dense", "auto"] = "auto"
  importance_loss_weight: float = 0.0
  load_loss_weight: float = 0.0
  gshard_loss_weight: float = 0.0
  router_z_loss_weight: float = 0.0

  @nn.compact
  def logits(
    self, x: Float[Array, "G S D"], deterministic: bool
  ) -> RouterLogits:
    clean = self.logits_rule(x, self.num_experts, deterministic)
    std = self.noise_std / self.num_experts
    noise = self._noise(clean.shape, std, deterministic)
    return RouterLogits(clean, noise, self._group_state(len(x)))

  @nn.nowrap
  def route(
    self, logits: RouterLogits, deterministic: bool = True
  ) -> tuple[RoutingPlan, balance.RoutingAux]:
    logits = logits.as_float32()
    capacity = self.capacity(logits.clean.shape[1])
    sizes = capacity, self.choice.num_selected_experts
    if self.weights == "transport":
      weights = scores = self.affinity(logits.noisy, *sizes)
    else:
      # Scores carry no gradient here: nothing is stored for the backward pass.
      scores = self.affinity(jax.lax.stop_gradient(logits.noisy), *sizes)
      seen = logits.noisy if self.noisy_weights else logits.clean
      weights = WEIGHTS[self.weights](seen)
    scores, more_losses, statistics = self._apply_controller(
      scores, weights, logits.state or {}
    )
    plan = self.choice(
      scores, weights, capacity=capacity, deterministic=deterministic
    )
    aux = balance.routing_aux(
      plan,
      self._losses(logits) | more_losses,
      self._loss_weights() | dict.fromkeys(more_losses, 1.0),
      statistics,
    )
    form = self.plan_form
    if form == "auto":
      form = best_plan_form(jax.default_backend(), self.num_experts * capacity)
    return dataclasses.replace(plan, multiplies=form == "dense"), aux

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

  def _group_state(self, num_groups: int) -> controller_lib.State | None:
    """The state of the controller, with a copy for each group."""
    if not self.controller:
      return None
    state = {
      name: self.variable(ROUTER_STATE, name, lambda value=value: value).value
      for name, value in self.controller.initial_state(self.num_experts).items()
    }
    return jax.tree.map(
      lambda leaf: jnp.broadcast_to(leaf, (num_groups, *leaf.shape)), state
    )

  @nn.nowrap
  def _apply_controller(
    self, scores: Array, weights: Array, state: controller_lib.State
  ) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Shifted scores, losses and statistics of the controller, if any."""
    if not self.controller:
      return scores, {}, {}
    K = self.choice.num_selected_experts
    return (
      self.controller.shift_scores(scores, state),
      self.controller.losses(weights, state, K),
      self.controller.statistics(scores, state, K),
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


class DroplessRouter(SparseRouter):
  """A sparse router whose experts have as many slots as tokens choose them.

  A plan has C = S slots per expert, most of them empty. The plan only describes
  the routing: the layer computes without it, see `routing.grouped`.
  """

  is_dropless: ClassVar[bool] = True
  plan_form: Literal["index"] = "index"

  @nn.nowrap
  def capacity(self, num_tokens: int) -> int:
    """S, which every token fits into."""
    return num_tokens


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
      have parameters, so C must be fixed to use a model at several resolutions.
    uniform_dispatch: whether every slot is the mean of all tokens.
    uniform_combine: whether every token is the mean of all slots. With both
      there are no parameters.
  """

  guarantees: ClassVar[Guarantees] = Guarantees(
    tokens_per_expert=("C", "C"),
    experts_per_token=("E", "E"),
    all_processed_if="always",
    slots="a mean",
  )
  capacity_factor: float = 1.0
  capacity_rounding: Literal["round", "ceil"] = "round"
  capacity_multiple_of: int = 1
  slots_per_expert: int | None = None
  uniform_dispatch: bool = False
  uniform_combine: bool = False

  @nn.compact
  def logits(
    self, x: Float[Array, "G S D"], deterministic: bool
  ) -> RouterLogits:
    shape = x.shape[-1], self.num_experts, self.capacity(x.shape[1])
    if self.uniform_dispatch and self.uniform_combine:
      return RouterLogits(jnp.zeros((*x.shape[:2], *shape[1:])))
    mu = self.param(
      SLOT_EMBEDDING, nn.initializers.lecun_normal(), shape, jnp.float32
    )
    scale = self.param("scale", nn.initializers.ones, (), jnp.float32)
    clean = slot_logits(x, mu, scale)
    noise = self._noise(clean.shape, self.noise_std, deterministic)
    return RouterLogits(clean, noise)

  @nn.nowrap
  def route(
    self, logits: RouterLogits, deterministic: bool = True
  ) -> tuple[RoutingPlan, balance.RoutingAux]:
    del deterministic
    plan = soft_choice(
      logits.as_float32().noisy,
      uniform_dispatch=self.uniform_dispatch,
      uniform_combine=self.uniform_combine,
    )
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
