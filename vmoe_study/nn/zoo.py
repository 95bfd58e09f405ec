"""The table of routers, and `make_router`.

To add a router, write an affinity or a choice and add a row to `ROUTERS`.

>>> from vmoe_study import ROUTERS
>>> "softmax_expert_choice" in ROUTERS
True
>>> ROUTERS["soft"].options()["num_experts"]
<class 'int'>
"""

import dataclasses
from typing import Any

import numpy as np

from vmoe_study.nn.logits import (
  CosineLogits,
  LinearLogits,
  PositionLogits,
  RandomLogits,
)
from vmoe_study.nn.router import (
  DroplessRouter,
  Router,
  SoftRouter,
  SparseRouter,
)
from vmoe_study.options import check_least, check_names, check_type, defaults
from vmoe_study.routing.affinity import (
  Linear,
  Relu,
  RowSparseTransport,
  Sigmoid,
  Sinkhorn,
  Softmax,
  SparseTransport,
)
from vmoe_study.routing.assignment import BalancedAssignment
from vmoe_study.routing.capped import CappedExpertChoice
from vmoe_study.routing.choice import ExpertChoice, TokenChoice
from vmoe_study.routing.controller import (
  ExpertThreshold,
  LoadBias,
  SparsityControl,
)
from vmoe_study.routing.guarantees import Guarantees
from vmoe_study.routing.threshold import ThresholdChoice


@dataclasses.dataclass(frozen=True)
class RouterDescription:
  """A verbal description of a router, for ROUTERS.md.

  Attributes:
    scores: what ranks tokens and experts.
    dispatch: which scores send a token to an expert, or how slots weigh tokens.
    combine: what scales the outputs of experts.
    source: arXiv number of the paper.
  """

  scores: str = ""
  dispatch: str = ""
  combine: str = ""
  source: str = ""


@dataclasses.dataclass(frozen=True)
class RouterSpec:
  """A row of `ROUTERS`: a router's class, its parts and its default options.

  The options of a router are the fields of its class and of its parts.

  Attributes:
    router: the class.
    parts: classes whose instances become fields of the router, by field name.
    defaults: option values that differ from the defaults of the classes.
    guarantees: bounds that its plans satisfy for any logits.
    excluded_options: fields that have no meaning for this router and are not
      among its options.
    about: description for ROUTERS.md.

  Raises:
    ValueError: if two of the classes have an option of the same name.
  """

  router: type[Router]
  parts: dict[str, type] = dataclasses.field(default_factory=dict)
  defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
  guarantees: Guarantees = SoftRouter.guarantees
  about: RouterDescription = RouterDescription()
  excluded_options: tuple[str, ...] = ()

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
    hidden = {"parent", "name", "controller"}
    hidden.update(self.parts, self.excluded_options)
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


def sparse_router_spec(
  affinity: type,
  choice: Any,
  logits: type = LinearLogits,
  *,
  router: type[SparseRouter] = SparseRouter,
  controller: type | None = None,
  guarantees: Guarantees | None = None,
  about: RouterDescription = RouterDescription(),
  excluded_options: tuple[str, ...] = (),
  **defaults,
) -> RouterSpec:
  """The row of a sparse router.

  Args:
    affinity: class of the affinity, a dataclass like those in
      `routing.affinity`.
    choice: class of the choice, a dataclass like those in `routing.choice`.
    logits: class of the logits rule, a dataclass like those in `nn.logits`.
    router: class of the router.
    controller: class of the controller, one of those in `routing.controller`;
      None for no controller.
    guarantees: bounds on its plans, where they differ from those of the choice.
    about: description for ROUTERS.md.
    excluded_options: fields that have no meaning for this router and are not
      among its options.
    **defaults: option values that differ from the defaults of the classes.

  Example:
    >>> import dataclasses
    >>> import jax
    >>> from vmoe_study.nn.zoo import sparse_router_spec
    >>> from vmoe_study.routing.choice import ExpertChoice
    >>> @dataclasses.dataclass(frozen=True)
    ... class Temperature:
    ...   temperature: float = 1.0
    ...
    ...   def __call__(self, logits, capacity, num_selected_experts):
    ...     return jax.nn.softmax(logits / self.temperature)
    >>> spec = sparse_router_spec(Temperature, ExpertChoice, noise_std=1.0)
    >>> router = spec.make({"num_experts": 4, "temperature": 0.5})
    >>> router.affinity, router.noise_std
    (Temperature(temperature=0.5), 1.0)
  """
  parts = {"logits_rule": logits, "affinity": affinity, "choice": choice}
  if controller is not None:
    parts["controller"] = controller
  promised = guarantees or choice.guarantees
  return RouterSpec(router, parts, defaults, promised, about, excluded_options)


_TOP_K = "the K largest of each token"
_TOP_C = "the C largest of each expert"
_SOFTMAX = "softmax over experts"
_POSITION = Guarantees(
  tokens_per_expert=("0", "C"),
  experts_per_token=("K", "K"),
  all_processed_if="if E C >= K S",
)
_SOFT_MOE = "2308.00951"

# In the public implementation, Sinkhorn token choice alone scales outputs by
# the probabilities of the logits without noise: hence its `noisy_weights`.
# In `column_sparse_token_choice` tokens go only where their transport plan
# sends them: otherwise ties of zero scores would send most of them to expert 0.
ROUTERS: dict[str, RouterSpec] = {
  # The routers of the study.
  "softmax_token_choice": sparse_router_spec(
    Softmax,
    TokenChoice,
    about=RouterDescription(_SOFTMAX, _TOP_K, _SOFTMAX, "2106.05974"),
    noise_std=1.0,
  ),
  "sinkhorn_token_choice": sparse_router_spec(
    Sinkhorn,
    TokenChoice,
    about=RouterDescription(
      "Sinkhorn transport plan", _TOP_K, _SOFTMAX, "2202.01169"
    ),
    noise_std=1.0,
    noisy_weights=False,
  ),
  "sparsity_constrained_token_choice": sparse_router_spec(
    RowSparseTransport,
    TokenChoice,
    about=RouterDescription(
      "transport plan with K nonzeros per token", _TOP_K, _SOFTMAX, "2209.15466"
    ),
  ),
  "softmax_expert_choice": sparse_router_spec(
    Softmax,
    ExpertChoice,
    about=RouterDescription(_SOFTMAX, _TOP_C, _SOFTMAX, "2202.09368"),
    noise_std=1.0,
  ),
  "sinkhorn_expert_choice": sparse_router_spec(
    Sinkhorn,
    ExpertChoice,
    about=RouterDescription(
      "Sinkhorn transport plan", _TOP_C, _SOFTMAX, "2401.15969"
    ),
    noise_std=1.0,
  ),
  "sparsity_constrained_expert_choice": sparse_router_spec(
    SparseTransport,
    ExpertChoice,
    about=RouterDescription(
      "transport plan with C nonzeros per expert",
      _TOP_C,
      _SOFTMAX,
      "2209.15466",
    ),
  ),
  "soft": RouterSpec(
    SoftRouter,
    about=RouterDescription(
      "scaled cosine of token and slot",
      "softmax over tokens",
      "softmax over slots",
      _SOFT_MOE,
    ),
  ),
  # Gates.
  "selected_softmax_token_choice": sparse_router_spec(
    Softmax,
    TokenChoice,
    about=RouterDescription(
      _SOFTMAX, _TOP_K, "softmax over the K chosen experts", "1701.06538"
    ),
    noise_std=1.0,
    num_selected_experts=2,
    renormalize=True,
  ),
  "sigmoid_token_choice": sparse_router_spec(
    Sigmoid,
    TokenChoice,
    about=RouterDescription(
      "sigmoid", _TOP_K, "sigmoid, divided by the sum over the K", "2412.19437"
    ),
    num_selected_experts=2,
    weights="sigmoid",
    renormalize=True,
  ),
  "cosine_token_choice": sparse_router_spec(
    Softmax,
    TokenChoice,
    CosineLogits,
    about=RouterDescription(
      f"{_SOFTMAX} of cosines", _TOP_K, f"{_SOFTMAX} of cosines", "2204.09179"
    ),
  ),
  # Other choices.
  "column_sparse_token_choice": sparse_router_spec(
    SparseTransport,
    TokenChoice,
    guarantees=Guarantees(
      tokens_per_expert=("0", "C"), experts_per_token=("0", "K")
    ),
    about=RouterDescription(
      "transport plan with C nonzeros per expert",
      f"{_TOP_K}, if above 0",
      _SOFTMAX,
      "this project",
    ),
    fill_zero_scores=False,
  ),
  "capped_expert_choice": sparse_router_spec(
    Softmax,
    CappedExpertChoice,
    about=RouterDescription(
      _SOFTMAX,
      "the C largest of each expert, of which a token accepts M",
      _SOFTMAX,
      "2202.09368, by deferred acceptance",
    ),
    noise_std=1.0,
  ),
  "base": sparse_router_spec(
    Linear,
    BalancedAssignment,
    about=RouterDescription(
      "the logits",
      "the best balanced assignment; in evaluation, the largest of each token",
      "sigmoid",
      "2103.16716",
    ),
    weights="sigmoid",
  ),
  # Balance by a controller's state.
  "bias_adjusted_token_choice": sparse_router_spec(
    Sigmoid,
    TokenChoice,
    controller=LoadBias,
    about=RouterDescription(
      "sigmoid plus the bias of the expert", _TOP_K, "sigmoid", "2408.15664"
    ),
    weights="sigmoid",
  ),
  "relu": sparse_router_spec(
    Relu,
    ThresholdChoice,
    controller=SparsityControl,
    about=RouterDescription(
      "positive part of the logits", "all above 0", "the scores", "2412.14711"
    ),
    weights="relu",
  ),
  "threshold": sparse_router_spec(
    Softmax,
    ThresholdChoice,
    controller=ExpertThreshold,
    about=RouterDescription(
      f"{_SOFTMAX} less the threshold of the expert",
      "all above 0",
      _SOFTMAX,
      "2603.11535",
    ),
  ),
  "dropless_token_choice": sparse_router_spec(
    Softmax,
    TokenChoice,
    router=DroplessRouter,
    guarantees=Guarantees(
      tokens_per_expert=("0", "S"),
      experts_per_token=("K", "K"),
      all_processed_if="always",
    ),
    about=RouterDescription(_SOFTMAX, _TOP_K, _SOFTMAX, "2211.15841"),
    excluded_options=(
      "capacity_factor",
      "capacity_rounding",
      "capacity_multiple_of",
      "batch_priority",
      "fill_zero_scores",
      "plan_form",
    ),
    noise_std=1.0,
  ),
  # Controls: routing that is not learned, wholly or in part.
  "random": sparse_router_spec(
    Softmax,
    TokenChoice,
    RandomLogits,
    about=RouterDescription("random numbers", _TOP_K, "1 / K", "control"),
    weights="uniform",
    renormalize=True,
  ),
  "hash": sparse_router_spec(
    Linear,
    TokenChoice,
    PositionLogits,
    guarantees=_POSITION,
    about=RouterDescription(
      "hash of the position", _TOP_K, "1 / K", "2106.04426"
    ),
    weights="uniform",
    renormalize=True,
    shuffled=True,
  ),
  "identity": sparse_router_spec(
    Linear,
    TokenChoice,
    PositionLogits,
    guarantees=_POSITION,
    about=RouterDescription("position modulo E", _TOP_K, "1 / K", _SOFT_MOE),
    weights="uniform",
    renormalize=True,
  ),
  "soft_uniform": RouterSpec(
    SoftRouter,
    defaults={"uniform_combine": True},
    about=RouterDescription(
      "as soft", "softmax over tokens", "1 / (E C)", _SOFT_MOE
    ),
  ),
  "uniform_soft": RouterSpec(
    SoftRouter,
    defaults={"uniform_dispatch": True},
    about=RouterDescription(
      "as soft", "1 / S", "softmax over slots", _SOFT_MOE
    ),
  ),
  "uniform": RouterSpec(
    SoftRouter,
    defaults={"uniform_dispatch": True, "uniform_combine": True},
    about=RouterDescription("none", "1 / S", "1 / (E C)", _SOFT_MOE),
  ),
}


_AT_LEAST = {
  "num_experts": 1,
  "num_selected_experts": 1,
  "num_iterations": 1,
  "slots_per_expert": 1,
  "max_experts_per_token": 1,
  "mean_experts_per_token": 1,
  "num_rounds": 1,
  "projection_dim": 0,
  "bias_update_rate": 0,
  "threshold_decay": 0,
  "capacity_multiple_of": 1,
  "noise_std": 0,
  "importance_loss_weight": 0,
  "load_loss_weight": 0,
  "gshard_loss_weight": 0,
  "router_z_loss_weight": 0,
}


_ABOVE_ZERO = {
  "capacity_factor",
  "coefficient_update_factor",
  "epsilon",
  "initial_coefficient",
  "initial_temperature",
}


def _check_range(where: str, option: str, value: Any) -> None:
  if option in _AT_LEAST and value is not None:
    check_least(where, value, _AT_LEAST[option])
  if option in _ABOVE_ZERO and value <= 0:
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
