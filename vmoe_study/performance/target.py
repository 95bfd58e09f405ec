"""TPU slices as a compilation target, described by libtpu without a TPU."""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from vmoe_study.parallel.mesh import slice_of
from vmoe_study.performance.chips import GIB, Slice, parse_slice
from vmoe_study.performance.links import SliceLinks

# Without these, libtpu would look for TPUs and log that there are none.
_LIBTPU_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  # By default only one process at a time may load libtpu, because only one can
  # use the TPUs. No TPU is used here.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class CompileTarget:
  """Equal slices, and their devices as the compiler describes them.

  Attributes:
    tpu_slice: the kind of slice.
    num_slices: number of slices, connected by the data-centre network.
    devices: devices of all slices.
  """

  tpu_slice: Slice
  num_slices: int
  devices: list[Any]

  def links(self, mesh: jax.sharding.Mesh) -> SliceLinks:
    """The links between the devices of a mesh, in its order."""
    axes = len(self.tpu_slice.shape)
    devices = list(mesh.devices.flat)
    places = np.array([device.coords[:axes] for device in devices])
    slices = np.array([slice_of(device) for device in devices])
    return SliceLinks(self.tpu_slice, places, slices)

  @functools.cached_property
  def hbm_bytes(self) -> float:
    """HBM of a device that programs can use, according to the compiler.

    The compiler reports it when a program needs more.
    """
    placed = jax.sharding.SingleDeviceSharding(self.devices[0])
    huge = jax.ShapeDtypeStruct((2**20, 2**20), jnp.float32, sharding=placed)
    try:
      jax.jit(lambda x: x + 1).lower(huge).compile()
    except jax.errors.JaxRuntimeError as error:
      if found := re.search(r"available HBM \(([\d.]+)G\)", str(error)):
        return float(found[1]) * GIB
    chip = self.tpu_slice.chip
    return chip.hbm_bytes / chip.devices


def libtpu_version() -> str:
  """The version of libtpu, on which estimates depend."""
  return importlib.metadata.version("libtpu")


def open_target(topology: str, num_slices: int = 1) -> CompileTarget:
  """Gets the devices of slices such as "v5e:4x4" from libtpu.

  From then on JAX itself computes on the CPU in this process.

  Raises:
    ValueError: there is no such slice, libtpu is not installed, or the network
      between slices is not known.
  """
  tpu_slice = parse_slice(topology)
  if num_slices < 1 or (
    num_slices > 1 and not tpu_slice.chip.network_bandwidth
  ):
    raise ValueError(
      f"slices={num_slices}: must be at least 1, and for {topology} it must be "
      "1 if the bandwidth between slices is not published. Choose another "
      "chip, or one slice."
    )
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"topology={topology!r}: libtpu, the compiler for TPUs, is missing. "
      "Install it with: pip install 'vmoe-study[plan]'. No TPU is needed."
    )
  for name, value in _LIBTPU_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")
  chip = tpu_slice.chip
  slices = {"num_slices": num_slices} if num_slices > 1 else {}
  try:
    description = topologies.get_topology_desc(
      platform="tpu", topology_name=topology, **slices, **dict(chip.options)
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f"topology={topology!r}: libtpu has no such slice ({error}). Known "
      f"slices of this chip: {', '.join(chip.slices)}."
    ) from error
  return CompileTarget(tpu_slice, num_slices, description.devices)
