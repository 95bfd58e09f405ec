"""A TPU slice as a compilation target, described by libtpu without a TPU."""

import dataclasses
import importlib.util
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from vmoe_study.performance.chips import Slice, parse_slice

# Without these, libtpu would look for TPUs and log that there are none.
_LIBTPU_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  # By default only one process at a time may load libtpu, as only one can use
  # the TPUs. None are used here.
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Target:
  """A slice, and its devices as the compiler describes them."""

  tpu_slice: Slice
  devices: list[Any]

  def coordinates(self, mesh: jax.sharding.Mesh) -> np.ndarray:
    """(chips, axes): position in the slice of each chip of a mesh, in order."""
    axes = len(self.tpu_slice.shape)
    return np.array([chip.coords[:axes] for chip in mesh.devices.flat])


def open_target(topology: str) -> Target:
  """Gets the devices of a slice such as "v5e:4x4" from libtpu.

  From then on JAX itself computes on the CPU in this process.

  Raises:
    ValueError: there is no such slice, or libtpu is not installed.
  """
  tpu_slice = parse_slice(topology)
  if importlib.util.find_spec("libtpu") is None:
    raise ValueError(
      f"topology={topology!r}: libtpu, the compiler for TPUs, is missing. "
      "Install it with: pip install 'vmoe-study[plan]'. No TPU is needed."
    )
  for name, value in _LIBTPU_ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update("jax_platforms", "cpu")
  chip = tpu_slice.chip
  try:
    description = topologies.get_topology_desc(
      platform="tpu", topology_name=topology, **dict(chip.options)
    )
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(
      f"topology={topology!r}: libtpu has no such slice ({error}). Known "
      f"slices of this chip: {', '.join(chip.slices)}."
    ) from error
  return Target(tpu_slice, description.devices)
