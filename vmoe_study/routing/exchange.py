"""Routing over a device mesh: one all-to-all to the experts and one back.

Groups are sharded over all devices and experts over one mesh axis. Groups never
straddle devices, so picking, dispatch and combine are local, and all that a
layer sends is expert inputs and expert outputs, once each.
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
  """Carries tokens to experts, wherever these are, and back.

  Attributes:
    mesh: devices, or shapes of such to trace programs for; None on a single
      device, where nothing is sent.
    group_axes: mesh axes that groups are sharded over, outermost first.
    expert_axis: the one of them that experts are sharded over.
  """

  mesh: Mesh | AbstractMesh | None = None
  group_axes: tuple[str, ...] = ("replica", "expert")
  expert_axis: str = "expert"

  def send(
    self, route: Route, tokens: Float[Array, "G S D"], logits: Any
  ) -> tuple[Float[Array, "E G C D"], RoutingPlan, RoutingAux]:
    """Routes every group and brings its tokens to the experts.

    Args:
      route: a pure function from router logits to a plan and its aux.
      tokens: sharded by group.
      logits: a tree of arrays with leading axis G, sharded by group.

    Returns:
      Expert inputs, sharded by expert; the plan and the aux, by group.
    """

    def local(tokens, logits):
      plan, aux = route(logits)
      inputs = plan.dispatch(tokens)
      return self._all_to_all(inputs, split=0, concat=1), plan, aux

    groups = PartitionSpec(self.group_axes)
    out_specs = self._by_expert(), groups, groups
    return self._per_device(local, groups, out_specs)(tokens, logits)

  def receive(
    self, plan: RoutingPlan, outputs: Float[Array, "E G C D"]
  ) -> Float[Array, "G S D"]:
    """Brings expert outputs home and combines them, sharded by group."""

    def local(plan, outputs):
      return plan.combine(self._all_to_all(outputs, split=1, concat=0))

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

  def _all_to_all(self, x, split: int, concat: int):
    if self.mesh is None or self.mesh.shape[self.expert_axis] == 1:
      return x
    return jax.lax.all_to_all(x, self.expert_axis, split, concat, tiled=True)
