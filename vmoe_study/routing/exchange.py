"""Routing over a device mesh: one all-to-all to the experts and one back.

Groups are sharded over all devices, experts over one mesh axis. No group spans
two devices, so routing, dispatch and combine are local, and a layer only
communicates the expert inputs and the expert outputs.

The slots of an expert are sent as rows, in the order C G. TPUs pad the last two
axes of an array to tiles of 8 by 128: 8 divides few capacities C, but most
numbers of local groups. On TPUs the groups of a device are exchanged in parts,
so that experts work on one part while the tokens of the next part are in
transit; and where `routing.slot_kernel` supports the shapes, it makes and reads
the rows, in an order of its own.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Float

from vmoe_study.routing.balance import RoutingAux
from vmoe_study.routing.plan import IndexPlan, RoutingPlan
from vmoe_study.routing.slot_kernel import combine, dispatch, is_supported

_MAX_PARTS = 4  # A power of 2.

Route = Callable[[Any], tuple[RoutingPlan, RoutingAux]]


@dataclasses.dataclass(frozen=True)
class Exchange:
  """Sends tokens to the devices of their experts and receives the outputs.

  Attributes:
    mesh: devices, or an abstract mesh to trace programs for; None for a single
      device, JAX's default. On one device nothing is communicated.
    group_axes: mesh axes over which groups are sharded, outermost first.
    expert_axis: the axis of `group_axes` over which experts are sharded.
  """

  mesh: Mesh | AbstractMesh | None = None
  group_axes: tuple[str, ...] = ("replica", "expert")
  expert_axis: str = "expert"

  @property
  def platform(self) -> str:
    """JAX's name of the backend that programs run on: "cpu", "gpu" or "tpu"."""
    if isinstance(self.mesh, Mesh):
      return self.mesh.devices.flat[0].platform
    return jax.default_backend()

  def map_over_devices(self, function: Callable) -> Callable:
    """Maps a function of arrays by group and replicated arrays over devices.

    Each device calls it on its own groups, or images, without communication;
    its results are arrays by group.
    """
    groups = PartitionSpec(self.group_axes)
    return self.per_device(function, (groups, PartitionSpec()), groups)

  def send(
    self, route: Route, tokens: Float[Array, "G S D"], logits: Any
  ) -> tuple[list[Float[Array, "E N D"]], RoutingPlan, RoutingAux]:
    """Routes every group and sends its tokens to the experts.

    Args:
      route: pure function from router logits to a plan and its aux.
      tokens: tokens of any float dtype, sharded by group.
      logits: tree of arrays with leading axis G, sharded by group.

    Returns:
      For each part of the groups (`RoutingPlan.part`), the inputs of its N
      slots of each expert, in the dtype of the tokens, sharded by expert; the
      plan and the aux, sharded by group. N is G * C over the number of parts.
    """

    def local(tokens_GSD, logits):
      plan, aux = route(logits)
      inputs = self._to_rows(plan, tokens_GSD)
      # From (all experts, local groups) to (local experts, all groups).
      inputs = [self._all_to_all(x, split=0, concat=1) for x in inputs]
      return inputs, plan, aux

    groups = PartitionSpec(self.group_axes)
    out_specs = self._by_expert(), groups, groups
    return self.per_device(local, groups, out_specs)(tokens, logits)

  def receive(
    self, plan: RoutingPlan, outputs: list[Float[Array, "E N D"]]
  ) -> Float[Array, "G S D"]:
    """Returns expert outputs to their groups and combines them.

    Args:
      plan: the plan that `send` returned, sharded by group.
      outputs: expert outputs for the inputs that `send` returned, of any float
        dtype, sharded by expert.

    Returns:
      Tokens in the dtype of the outputs, sharded by group.
    """

    def local(plan, outputs):
      outputs = [self._all_to_all(y, split=1, concat=0) for y in outputs]
      return self._to_tokens(plan, outputs)

    groups = PartitionSpec(self.group_axes)
    in_specs = groups, self._by_expert()
    return self.per_device(local, in_specs, groups)(plan, outputs)

  def _to_rows(self, plan, x_GSD):
    """The rows (E, N, D) of each part, in the order in which they are sent."""
    count = self._num_parts(plan)
    if self._takes_kernel(plan, x_GSD):
      return dispatch(x_GSD, plan.tokens, plan.num_tokens, count)
    rows = []
    for index, part_GSD in enumerate(jnp.split(x_GSD, count)):
      part = plan.part(index, count)
      inputs_ECGD = jnp.moveaxis(part.dispatch(part_GSD), 2, 1)
      rows.append(inputs_ECGD.reshape(plan.num_experts, -1, x_GSD.shape[2]))
    return rows

  def _to_tokens(self, plan, rows):
    """Combines rows in the order of `_to_rows`."""
    if self._takes_kernel(plan, rows[0]):
      return combine(rows, plan.tokens, plan.weights, plan.num_tokens)
    tokens = []
    for index, rows_END in enumerate(rows):
      part = plan.part(index, len(rows))
      shape = part.num_experts, -1, part.num_groups, rows_END.shape[2]
      outputs_EGCD = jnp.moveaxis(rows_END.reshape(shape), 2, 1)
      tokens.append(part.combine(outputs_EGCD))
    return jnp.concatenate(tokens)

  def _takes_kernel(self, plan, x):
    """Whether the kernels for TPUs carry tokens or rows like `x`."""
    if self.platform != "tpu" or not isinstance(plan, IndexPlan):
      return False
    return is_supported(plan, x.shape[-1], x.dtype.itemsize)

  def _num_parts(self, plan: RoutingPlan) -> int:
    """Number of parts, each with a multiple of 8 groups on each device."""
    if self.platform != "tpu" or self.num_devices == 1:
      return 1
    return max(1, math.gcd(plan.num_groups, 8 * _MAX_PARTS) // 8)

  @property
  def num_devices(self) -> int:
    """Number of devices that exchange tokens."""
    return 1 if self.mesh is None else self.mesh.shape[self.expert_axis]

  def _by_expert(self) -> PartitionSpec:
    others = tuple(a for a in self.group_axes if a != self.expert_axis)
    return PartitionSpec(self.expert_axis, others)

  def per_device(self, function, in_specs, out_specs):
    if self.mesh is None or self.mesh.size == 1:
      return function
    return jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      check_vma=False,
    )

  def _all_to_all(self, x_END, split: int, concat: int):
    if self.num_devices == 1:
      return x_END
    return jax.lax.all_to_all(
      x_END, self.expert_axis, split, concat, tiled=True
    )
