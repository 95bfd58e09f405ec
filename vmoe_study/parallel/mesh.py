"""The device mesh: its axes, their sizes, and the order of devices."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh

# A slice is a set of devices with fast links; the slower data-centre network
# connects slices. Most runs have one slice.
AXES = ("slice", "replica", "expert")
WITHIN_SLICE = ("replica", "expert")
_AXIS_TYPES = (AxisType.Auto,) * len(AXES)


@dataclasses.dataclass(frozen=True)
class MeshSpec:
  """Sizes of the mesh axes.

  One of the two sizes may be -1: the number of devices divided by the other.

  Attributes:
    replica: number of devices that hold the same experts, in all slices.
    expert: number of devices that the experts are divided among, in one slice.
    fsdp: whether to shard all other parameters and the optimizer state over the
      devices of each slice.
  """

  replica: int = -1
  expert: int = 1
  fsdp: bool = False

  def __post_init__(self):
    for axis, size in self._given().items():
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

  def _given(self) -> dict[str, int]:
    return {"replica": self.replica, "expert": self.expert}

  def shape(self, num_devices: int) -> dict[str, int]:
    """`replica` and `expert` on this number of devices.

    Raises:
      ValueError: the product of the sizes is not the number of devices.
    """
    known = math.prod(size for size in self._given().values() if size != -1)
    rest = num_devices // known
    sizes = {
      axis: rest if size == -1 else size for axis, size in self._given().items()
    }
    if math.prod(sizes.values()) != num_devices:
      raise ValueError(
        f"mesh.replica={self.replica}, mesh.expert={self.expert}: must "
        f"make up the {num_devices} devices. Set sizes whose product is "
        f"{num_devices}, or one of them to -1 and the other to a divisor."
      )
    return sizes

  def axis_sizes(
    self, num_devices: int, num_slices: int
  ) -> tuple[int, int, int]:
    """The sizes of the axes `AXES`.

    Raises:
      ValueError: see `shape`; or experts would be divided among slices.
    """
    sizes = self.shape(num_devices)
    if sizes["replica"] % num_slices:
      raise ValueError(
        f"mesh.expert={sizes['expert']}: must divide the "
        f"{num_devices // num_slices} devices of each of the {num_slices} "
        "slices, so that tokens travel within slices. Set a divisor."
      )
    return num_slices, sizes["replica"] // num_slices, sizes["expert"]


def make_mesh(spec: MeshSpec, devices: Sequence[Any] | None = None) -> Mesh:
  """The mesh over the given devices, by default all, with Auto axes.

  Devices are sorted by slice, then by process, so a global batch has the rows
  of process 0 first, then those of process 1, and so on: the same rows for any
  number of processes. On TPU slices, hosts are numbered from neighbour to
  neighbour, so that devices along the axis `expert` are close together.

  Raises:
    ValueError: the sizes do not fit the number of devices or slices.
  """
  devices = jax.devices() if devices is None else devices
  devices = sorted(
    devices,
    key=lambda device: (slice_of(device), device.process_index, device.id),
  )
  num_slices = len({slice_of(device) for device in devices})
  shape = spec.axis_sizes(len(devices), num_slices)
  return Mesh(np.array(devices).reshape(shape), AXES, axis_types=_AXIS_TYPES)


def slice_of(device: Any) -> int:
  """The slice that a TPU belongs to; 0 for other devices."""
  if device.platform != "tpu":
    return 0
  return getattr(device, "slice_index", None) or 0


def make_abstract_mesh(spec: MeshSpec, num_devices: int) -> AbstractMesh:
  """An abstract mesh of one slice, to compute shapes without devices.

  Raises:
    ValueError: the sizes do not fit the number of devices.
  """
  shape = spec.axis_sizes(num_devices, 1)
  return AbstractMesh(shape, AXES, axis_types=_AXIS_TYPES)
