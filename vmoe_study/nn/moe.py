"""The mixture-of-experts layer: routes, dispatches, runs experts, combines."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vmoe_study.nn import parameter_names as names
from vmoe_study.nn.mlp import Mlp, apply_mlp
from vmoe_study.nn.router import RouterLogits
from vmoe_study.nn.zoo import ROUTERS, make_router
from vmoe_study.options import check_least, check_names
from vmoe_study.routing.balance import RoutingAux
from vmoe_study.routing.exchange import Exchange, Route
from vmoe_study.routing.grouped import grouped_layer

DENSE = "dense"  # In place of a router's name: no routed blocks.


@dataclasses.dataclass(frozen=True)
class MoeOptions:
  """The routed blocks of a model.

  Attributes:
    router: a key of `ROUTERS`, or "dense" for a model without routed blocks.
    options: options of the router, see `make_router`.
    blocks: which blocks are routed, see `nn.vit.moe_blocks`.
    group_images: images per routing group: their tokens compete for slots.
    shared_expert_init: whether all experts start from the same values; their
      dropout masks are then the same, too, as in the public V-MoE code.
    expert_dropout_rate: dropout rate inside the experts; None for the rate of
      the MLPs.

  Raises:
    ValueError: if `group_images` is below 1, or a rate is not in [0, 1).

  Example:
    >>> from vmoe_study import MoeOptions
    >>> moe = MoeOptions("softmax_expert_choice", {"num_experts": 8})
    >>> moe.is_routed, moe.blocks
    (True, 'every 2')
    >>> MoeOptions().is_routed
    False
  """

  router: str = DENSE
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  blocks: str | tuple[int, ...] = "every 2"
  group_images: int = 1
  shared_expert_init: bool = False
  expert_dropout_rate: float | None = None

  def __post_init__(self):
    check_least("group_images", self.group_images, 1)
    if not 0 <= (self.expert_dropout_rate or 0) < 1:
      raise ValueError(
        f"expert_dropout_rate={self.expert_dropout_rate}: must be in [0, 1)."
      )

  @property
  def is_routed(self) -> bool:
    """Whether the model has routed blocks."""
    return self.router != DENSE

  @property
  def is_sparse(self) -> bool:
    """Whether the router has a capacity factor and a plan form."""
    return self.is_routed and "plan_form" in ROUTERS[self.router].options()

  def check_router(self) -> None:
    """Checks the router's name and options.

    Raises:
      ValueError: for an unknown name, bad options, or options with "dense".
    """
    check_names("router", [self.router], [*ROUTERS, DENSE])
    if self.is_routed:
      make_router(self.router, **self.options)
    elif self.options:
      raise ValueError(
        f"moe.options={dict(self.options)}: must be empty for router "
        f"{DENSE!r}. Remove them."
      )


class Moe(nn.Module):
  """A layer of E experts behind a router, in place of the MLP of a block.

  Maps tokens (B, L, D) of any float dtype to tokens of `dtype` and a
  `RoutingAux`.

  Attributes:
    moe: router, groups and experts.
    mlp_dim: F, the hidden size of each expert.
    dropout_rate: rate inside the experts, unless `moe` has its own; needs the
      RNG stream "dropout".
    dtype: dtype of the experts; routers compute in float32.
    exchange: sends tokens to the devices of their experts.

  Raises:
    ValueError: when called with an unknown router, bad options, or a batch that
      `group_images` does not divide.

  Example:
    >>> import jax
    >>> from vmoe_study import Moe, MoeOptions
    >>> layer = Moe(MoeOptions("soft", {"num_experts": 4}), mlp_dim=16)
    >>> x = jax.random.normal(jax.random.key(0), (2, 8, 4))  # (B, L, D)
    >>> params = jax.jit(layer.init)(jax.random.key(1), x)
    >>> y, aux = jax.jit(layer.apply)(params, x)
    >>> y.shape, aux.tokens_per_expert.shape
    ((2, 8, 4), (2, 4))
  """

  moe: MoeOptions
  mlp_dim: int
  dropout_rate: float = 0.0
  dtype: str = "float32"
  exchange: Exchange = Exchange()

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], deterministic: bool = True
  ) -> tuple[Float[Array, "B L D"], RoutingAux]:
    tokens = group_images(x, self.moe.group_images)
    router = make_router(self.moe.router, **self.moe.options)
    router = router.clone(name=names.ROUTER, parent=self)
    logits = router.logits(tokens, deterministic)

    route = functools.partial(router.route, deterministic=deterministic)
    tokens = tokens.astype(self.dtype)
    rate = self.moe.expert_dropout_rate
    experts = make_experts(
      self.mlp_dim,
      self.dropout_rate if rate is None else rate,
      self.dtype,
      shared_init=self.moe.shared_expert_init,
      name=names.MLP,
    )
    if router.is_dropless:
      y, aux = self._grouped(experts, route, tokens, logits)
      return y.reshape(x.shape), aux
    inputs, plan, aux = self.exchange.send(route, tokens, logits)
    outputs = [experts(part, deterministic) for part in inputs]
    tokens = self.exchange.receive(plan, outputs)
    return tokens.reshape(x.shape), aux

  def _grouped(
    self, experts: nn.Module, route: Route, tokens: Array, logits: RouterLogits
  ) -> tuple[Array, RoutingAux]:
    """Applies experts to all tokens that choose them; there are no slots."""
    if experts.dropout_rate:
      raise ValueError(
        f"moe.expert_dropout_rate={experts.dropout_rate}: must be 0 with "
        f"router {self.moe.router!r}. Set moe.expert_dropout_rate=0."
      )
    if self.is_initializing():
      one_slot = jnp.zeros((logits.clean.shape[2], 1, tokens.shape[2]))
      experts(one_slot, True)
    params = experts.variables["params"]
    return grouped_layer(
      self.exchange, route, apply_mlp, params, tokens, logits
    )


def make_experts(
  mlp_dim: int,
  dropout_rate: float = 0.0,
  dtype: str = "float32",
  *,
  shared_init: bool = False,
  name: str | None = None,
) -> nn.Module:
  """E independent MLPs, mapped over the leading axis of (E, ..., D).

  Args:
    mlp_dim: F, the hidden size of each expert.
    dropout_rate: rate inside the experts; needs the RNG stream "dropout".
    dtype: dtype of the computation.
    shared_init: whether all experts start from the same values and draw the
      same dropout masks.
    name: name of the module.

  Returns:
    A module to be called with (E, ..., D) and `deterministic`.
  """
  experts = nn.vmap(
    Mlp,
    variable_axes={"params": 0},
    split_rngs={"params": not shared_init, "dropout": not shared_init},
    in_axes=(0, None),
  )
  return experts(mlp_dim, dropout_rate, dtype, name=name)


def group_images(
  x: Float[Array, "B L D"], images: int
) -> Float[Array, "G S D"]:
  """Groups the tokens of every `images` consecutive images.

  Args:
    x: tokens by image.
    images: per group.

  Returns:
    Tokens by group: G = B / images, S = images * L.

  Raises:
    ValueError: if the batch is not a multiple of `images`.
  """
  batch, length, width = x.shape
  if images < 1 or batch % images:
    raise ValueError(
      f"group_images={images}: must be positive and divide the batch of "
      f"{batch} images. Change one of them."
    )
  return x.reshape(batch // images, images * length, width)
