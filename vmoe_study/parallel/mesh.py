"""The device mesh: its axes, their sizes, and the order of devices."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

AXES = ("replica", "expert")
_AXIS_TYPES = (AxisType.Auto,) * len(AXES)


@dataclasses.dataclass(frozen=True)
class MeshSpec:
  """Sizes of the mesh axes.

  One of the two sizes may be -1: the number of devices divided by the other.

  Attributes:
    replica: number of devices that hold the same experts.
    expert: number of devices that the experts are divided among.
    fsdp: shard all other parameters too, and the optimizer state.
  """

  replica: int = -1
  expert: int = 1
  fsdp: bool = False

  def __post_init__(self):
    for axis, size in self._sizes().items():
      if size != -1 and size < 1:
        raise ValueError(
          f"mesh.{axis}={size}: must be positive, or -1 for the number of "
          "devices divided by the other size."
        )
    if self.replica == self.expert == -1:
      raise ValueError(
        "mesh.replica=-1, mesh.expert=-1: only one of them can be -1. Set the "
        "other to a divisor of the number of devices."
      )

  def _sizes(self) -> dict[str, int]:
    return {axis: getattr(self, axis) for axis in AXES}

  def shape(self, num_devices: int) -> dict[str, int]:
    """The size of each axis on this number of devices.

    Raises:
      ValueError: the product of the sizes is not the number of devices.
    """
    known = math.prod(size for size in self._sizes().values() if size != -1)
    rest = num_devices // known
    sizes = {
      axis: rest if size == -1 else size for axis, size in self._sizes().items()
    }
    if math.prod(sizes.values()) != num_devices:
      raise ValueError(
        f"mesh.replica={self.replica}, mesh.expert={self.expert}: must "
        f"make up the {num_devices} devices. Set sizes whose product is "
        f"{num_devices}, or one of them to -1 and the other to a divisor."
      )
    return sizes


def make_mesh(spec: MeshSpec, devices: Sequence[Any] | None = None) -> Mesh:
  """The mesh over the given devices, by default all, with Auto axes.

  Devices are sorted by process, so that the rows of a global batch are those of
  process 0, then those of process 1, and so on: the same rows for any number of
  processes. On TPU slices, hosts are numbered from neighbour to neighbour, so
  that devices along the axis `expert` are close together.

  Raises:
    ValueError: the sizes do not fit the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  devices = sorted(
    devices, key=lambda device: (device.process_index, device.id)
  )
  shape = tuple(spec.shape(len(devices)).values())
  return Mesh(np.array(devices).reshape(shape), AXES, axis_types=_AXIS_TYPES)


def make_abstract_mesh(spec: MeshSpec, num_devices: int) -> AbstractMesh:
  """The same mesh for devices that need not exist, for computing shapes.

  Raises:
    ValueError: the sizes do not fit the number of devices.
  """
  shape = tuple(spec.shape(num_devices).values())
  return AbstractMesh(shape, AXES, axis_types=_AXIS_TYPES)
