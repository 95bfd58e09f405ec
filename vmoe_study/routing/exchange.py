"""Routing over a device mesh: one all-to-all to the experts and one back.

Groups are sharded over all devices, experts over one mesh axis. No group spans
two devices, so routing, dispatch and combine are local, and a layer only
communicates the expert inputs and the expert outputs.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Float

from vmoe_study.routing.balance import RoutingAux
from vmoe_study.routing.plan import RoutingPlan

Route = Callable[[Any], tuple[RoutingPlan, RoutingAux]]


@dataclasses.dataclass(frozen=True)
class Exchange:
  """Sends tokens to the devices of their experts and receives the outputs.

  Attributes:
    mesh: devices, or an abstract mesh to trace programs for; None for a single
      device, where nothing is communicated.
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

  def on_each_device(self, function: Callable) -> Callable:
    """A function of arrays by group and of replicated ones, to arrays by group.

    Each device calls it on its own groups, or images, without communication.
    """
    groups = PartitionSpec(self.group_axes)
    return self._per_device(function, (groups, PartitionSpec()), groups)

  def send(
    self, route: Route, tokens: Float[Array, "G S D"], logits: Any
  ) -> tuple[Float[Array, "E G C D"], RoutingPlan, RoutingAux]:
    """Routes every group and sends its tokens to the experts.

    Args:
      route: pure function from router logits to a plan and its aux.
      tokens: of any float dtype, sharded by group.
      logits: tree of arrays with leading axis G, sharded by group.

    Returns:
      Expert inputs in the dtype of the tokens, sharded by expert; the plan and
      the aux, sharded by group.
    """

    def local(tokens_GSD, logits):
      plan, aux = route(logits)
      inputs_EGCD = plan.dispatch(tokens_GSD)
      # From (all experts, local groups) to (local experts, all groups).
      return self._all_to_all(inputs_EGCD, split=0, concat=1), plan, aux

    groups = PartitionSpec(self.group_axes)
    out_specs = self._by_expert(), groups, groups
    return self._per_device(local, groups, out_specs)(tokens, logits)

  def receive(
    self, plan: RoutingPlan, outputs: Float[Array, "E G C D"]
  ) -> Float[Array, "G S D"]:
    """Returns expert outputs to their groups and combines them.

    Args:
      plan: of `send`, sharded by group.
      outputs: of any float dtype, sharded by expert.

    Returns:
      Tokens in the dtype of the outputs, sharded by group.
    """

    def local(plan, outputs_EGCD):
      return plan.combine(self._all_to_all(outputs_EGCD, split=1, concat=0))

    groups = PartitionSpec(self.group_axes)
    in_specs = groups, self._by_expert()
    return self._per_device(local, in_specs, groups)(plan, outputs)

  def _by_expert(self) -> PartitionSpec:
    others = tuple(a for a in self.group_axes if a != self.expert_axis)
    return PartitionSpec(self.expert_axis, others)

  def _per_device(self, function, in_specs, out_specs):
    if self.mesh is None:
      return function
    return jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      check_vma=False,
    )

  def _all_to_all(self, x_EGCD, split: int, concat: int):
    if self.mesh is None or self.mesh.shape[self.expert_axis] == 1:
      return x_EGCD
    return jax.lax.all_to_all(
      x_EGCD, self.expert_axis, split, concat, tiled=True
    )
