"""The mixture-of-experts layer: route, dispatch, run experts, combine."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from vmoe_study.nn import parameter_names as names
from vmoe_study.nn.mlp import Mlp
from vmoe_study.nn.router import make_router
from vmoe_study.options import check_least
from vmoe_study.routing.balance import RoutingAux
from vmoe_study.routing.exchange import Exchange


@dataclasses.dataclass(frozen=True)
class MoeOptions:
  """What distinguishes a MoE block from a dense one.

  Attributes:
    router: a name in `nn.router.ROUTERS`.
    options: of that router, `num_experts` among them.
    blocks: which blocks are MoE, see `nn.vit.moe_blocks`.
    group_images: images whose tokens are routed together.
    shared_expert_init: whether all experts start from the same random values.
  """

  router: str = "dense"
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  blocks: str | tuple[int, ...] = "every 2"
  group_images: int = 1
  shared_expert_init: bool = False

  def __post_init__(self):
    check_least("group_images", self.group_images, 1)


class Moe(nn.Module):
  """Replaces the MLP of a block by E routed ones.

  Attributes:
    moe: router, groups and experts.
    mlp_dim: F of each expert.
    dropout_rate: inside the experts.
    dtype: of the experts; routers compute in float32.
    exchange: where the experts are.
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

    tokens = tokens.astype(self.dtype)
    inputs, plan, aux = self.exchange.send(router.route, tokens, logits)
    experts = make_experts(
      self.mlp_dim,
      self.dropout_rate,
      self.dtype,
      shared_init=self.moe.shared_expert_init,
      name=names.MLP,
    )
    outputs = experts(inputs, deterministic)
    tokens = self.exchange.receive(plan, outputs)
    return tokens.reshape(x.shape), aux


def make_experts(
  mlp_dim: int,
  dropout_rate: float = 0.0,
  dtype: str = "float32",
  *,
  shared_init: bool = False,
  name: str | None = None,
) -> nn.Module:
  """E independent MLPs, mapped over the leading axis of (E, G, C, D).

  Args:
    mlp_dim: F.
    dropout_rate: inside each expert.
    dtype: of the computation.
    shared_init: whether all experts start from the same random values.
    name: of the module.
  """
  experts = nn.vmap(
    Mlp,
    variable_axes={"params": 0},
    split_rngs={"params": not shared_init, "dropout": True},
    in_axes=(0, None),
  )
  return experts(mlp_dim, dropout_rate, dtype, name=name)


def group_images(
  x: Float[Array, "B L D"], images: int
) -> Float[Array, "G S D"]:
  """Puts the tokens of every `images` consecutive images into one group.

  Raises:
    ValueError: if the batch is not a multiple of `images`.
  """
  batch, length, width = x.shape
  if images < 1 or batch % images:
    raise ValueError(
      f"group_images={images}: must be positive and divide the batch of "
      f"{batch} images."
    )
  return x.reshape(batch // images, images * length, width)
