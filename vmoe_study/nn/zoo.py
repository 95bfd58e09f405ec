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

from vmoe_study.nn.router import Router, SoftRouter, SparseRouter
from vmoe_study.options import check_least, check_names, check_type, defaults
from vmoe_study.routing.affinity import Sinkhorn, Softmax, SparseTransport
from vmoe_study.routing.choice import ExpertChoice, TokenChoice


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
    >>> from vmoe_study.nn.zoo import sparse
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
