"""Grouped experts: an expert computes on all rows that choose it.

Without a capacity no choice is dropped, but the load of an expert is known only
after all tokens have chosen. Shapes are static, so the sum of the loads is
fixed instead of each load: N tokens make K N rows, however these are
distributed over experts. The rows are laid out expert after expert and go
through grouped matrix products.

With an exchange, rows are sent to the devices of their experts. In the worst
case a device sends all of its rows to one other device; on n devices, a buffer
for that case is n times as large as balanced choices need. So there are two
programs. If no device sends more than `MAX_IMBALANCE` times its balanced share
to any other, which all devices determine together, buffers have that size;
otherwise they have the size of the worst case. Neither program drops a row.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from vmoe_study.routing.balance import RoutingAux
from vmoe_study.routing.exchange import Exchange, Route

MAX_IMBALANCE = 2.0

Dense = Callable[[Array, Mapping[str, Array]], Array]
# (parameters, rows, dense) to outputs, row by row. `dense(rows, layer)` applies
# the kernel and bias of each row's expert; both have a leading axis E.
Experts = Callable[[Any, Array, Dense], Array]


def grouped_layer(
  exchange: Exchange,
  route: Route,
  experts: Experts,
  params: Any,
  tokens: Float[Array, "G S D"],
  logits: Any,
) -> tuple[Float[Array, "G S D"], RoutingAux]:
  """Routes every group, applies experts to all chosen tokens, and combines.

  Args:
    exchange: the exchange between devices.
    route: pure function from router logits to an `IndexPlan` that drops nothing
      and knows the slots of each token, and its aux.
    experts: see `Experts`.
    params: parameters of all experts: arrays with leading axis E, sharded by
      expert.
    tokens: tokens of any float dtype, sharded by group.
    logits: tree of arrays with leading axis G, sharded by group.

  Returns:
    Tokens in their dtype, and the aux, both sharded by group.
  """

  def local(params, tokens_GSD, logits):
    plan, aux = route(logits)
    num_groups, num_experts, capacity = plan.tokens.shape
    slots_GR = plan.slots.reshape(num_groups, -1)  # R = S * K rows.
    weights_GR = jnp.take_along_axis(
      plan.weights.reshape(num_groups, -1), slots_GR, axis=1
    )
    rows_GRD = jnp.repeat(tokens_GSD, plan.slots.shape[2], axis=1)
    outputs = _exchanged(
      exchange,
      experts,
      params,
      rows_GRD.reshape(-1, rows_GRD.shape[2]),
      slots_GR.reshape(-1) // capacity,
      num_experts,
    )
    weighted = outputs.reshape(rows_GRD.shape) * weights_GR[..., None].astype(
      outputs.dtype
    )
    by_choice = weighted.reshape(*plan.slots.shape, -1)
    return by_choice.sum(axis=2, dtype=tokens_GSD.dtype), aux

  groups = PartitionSpec(exchange.group_axes)
  in_specs = PartitionSpec(exchange.expert_axis), groups, groups
  return exchange.per_device(local, in_specs, groups)(params, tokens, logits)


def _exchanged(exchange, experts, params, rows_RD, expert_R, num_experts):
  """Outputs of all rows, each of the expert of that row, wherever it is."""
  axis, num_rows = exchange.expert_axis, len(rows_RD)
  count = exchange.num_devices
  if count == 1:
    return _grouped(experts, params, rows_RD, expert_R, num_experts)
  local_experts = num_experts // count
  loads_E = _one_hot(expert_R, num_experts).sum(axis=0)
  loads_NE = loads_E.reshape(count, local_experts)
  # Within the rows for a device, in the order of its experts.
  start_E = (jnp.cumsum(loads_NE, axis=1) - loads_NE).reshape(-1)
  order_R = start_E[expert_R] + _rank(expert_R, num_experts)
  received_NE = jax.lax.all_to_all(loads_NE, axis, 0, 0, tiled=True)

  def run(bound: int):
    def swap(x_BD):  # B = count * bound
      return jax.lax.all_to_all(x_BD, axis, 0, 0, tiled=True)

    place_R = expert_R // local_experts * bound + order_R
    sent_BD = jnp.zeros((count * bound, rows_RD.shape[1]), rows_RD.dtype)
    sent_BD = sent_BD.at[place_R].set(rows_RD, unique_indices=True)
    ends_NE = jnp.cumsum(received_NE, axis=1)
    # The expert of each row; local_experts beyond the last row.
    row_1b1 = jnp.arange(bound)[None, :, None]
    expert_Nb = jnp.sum(row_1b1 >= ends_NE[:, None], axis=2)
    outputs_BD = _grouped(
      experts, params, swap(sent_BD), expert_Nb.reshape(-1), local_experts
    )
    return swap(outputs_BD)[place_R]

  bound = -(-int(MAX_IMBALANCE * num_rows) // count)
  if bound >= num_rows:
    return run(num_rows)
  largest = jax.lax.pmax(loads_NE.sum(axis=1).max(), axis)
  return jax.lax.cond(
    largest <= bound, lambda: run(bound), lambda: run(num_rows)
  )


def _grouped(experts, params, rows_RD, expert_R, num_experts):
  """Outputs of all rows on one device; expert E marks rows that need none."""
  layout = Layout.of(expert_R, num_experts, block_size())
  placed_ND = jnp.zeros((layout.size, rows_RD.shape[1]), rows_RD.dtype)
  placed_ND = placed_ND.at[layout.place].set(rows_RD, mode="drop")
  outputs_ND = experts(params, placed_ND, layout.dense)
  return outputs_ND.at[layout.place].get(mode="fill", fill_value=0)


def block_size() -> int:
  """Rows per block on this backend."""
  return 32 if jax.default_backend() == "cpu" else 1


@dataclasses.dataclass(frozen=True)
class Layout:
  """Rows in the order of their experts, each expert's in blocks of equal size.

  On TPUs and GPUs a block is one row, and products are `jax.lax.ragged_dot`. On
  CPUs, where that costs as much as if every expert computed on all rows, each
  block is multiplied by a copy of its expert's kernel.

  Attributes:
    place: position of each row; `size` for rows without an expert.
    loads: rows of each expert, padded to whole blocks.
    block: rows per block.
    size: positions in the layout.
  """

  place: Int[Array, "R"]
  loads: Int[Array, "E"]
  block: int
  size: int

  @classmethod
  def of(
    cls, expert: Int[Array, "R"], num_experts: int, block: int
  ) -> "Layout":
    """The layout of rows with these experts."""
    loads_E = _one_hot(expert, num_experts).sum(axis=0)
    filled_E = -(-loads_E // block) * block
    most = len(expert) + num_experts * (block - 1)
    size = -(-most // block) * block
    start_E = jnp.cumsum(filled_E) - filled_E
    place = start_E[expert] + _rank(expert, num_experts)
    place = jnp.where(expert < num_experts, place, size)
    return cls(place, filled_E, block, size)

  def dense(
    self, x: Float[Array, "N D"], layer: Mapping[str, ArrayLike]
  ) -> Float[Array, "N F"]:
    """Applies the kernel (E, D, F) and bias (E, F) of each row's expert."""
    kernel_EDF = jnp.asarray(layer["kernel"], x.dtype)
    block_M = jnp.arange(self.size // self.block) * self.block
    expert_M = jnp.searchsorted(jnp.cumsum(self.loads), block_M, side="right")
    expert_M = jnp.minimum(expert_M, len(kernel_EDF) - 1)
    bias_NF = jnp.repeat(
      jnp.asarray(layer["bias"], x.dtype)[expert_M], self.block, axis=0
    )
    if self.block == 1:
      return jax.lax.ragged_dot(x, kernel_EDF, self.loads) + bias_NF
    blocks_MbD = x.reshape(-1, self.block, x.shape[1])
    products = jnp.einsum("MbD,MDF->MbF", blocks_MbD, kernel_EDF[expert_M])
    return products.reshape(bias_NF.shape) + bias_NF


def _one_hot(expert_R: Int[Array, "R"], num_experts: int) -> Int[Array, "R E"]:
  return jax.nn.one_hot(expert_R, num_experts, dtype=jnp.int32)


def _rank(expert_R: Int[Array, "R"], num_experts: int) -> Int[Array, "R"]:
  """The number of rows before each row that have the same expert."""
  one_hot_RE = _one_hot(expert_R, num_experts)
  return jnp.sum(one_hot_RE * (jnp.cumsum(one_hot_RE, axis=0) - 1), axis=1)
