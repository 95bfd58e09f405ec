"""Lower bound of the step time, with every resource at its published peak.

Compute units, HBM and interconnect work in parallel, so the slowest of the
three bounds the step time from below. Real steps take longer.
"""

import numpy as np

from vmoe_study.performance.chips import Slice
from vmoe_study.performance.hlo import Collective, Traffic


def step_seconds(
  flops: float, traffic: Traffic, tpu_slice: Slice, coordinates: np.ndarray
) -> dict[str, float]:
  """Seconds that each resource is busy: "compute", "hbm", "interconnect".

  Args:
    flops: FLOPs of one chip.
    traffic: memory and network traffic of one chip.
    tpu_slice: the slice that the program runs on.
    coordinates: (chips, axes): position of each chip in the slice, in the order
      in which the collectives number the chips.
  """
  wire = sum(
    c.count * wire_bytes(c, tpu_slice, coordinates) for c in traffic.collectives
  )
  return {
    "compute": flops / tpu_slice.chip.flops,
    "hbm": traffic.hbm_bytes / tpu_slice.chip.hbm_bandwidth,
    "interconnect": wire / tpu_slice.chip.ici_bandwidth,
  }


def wire_bytes(
  collective: Collective, tpu_slice: Slice, coordinates: np.ndarray
) -> float:
  """Bytes over the links of one chip, averaged over the chips.

  All-gather and reduce-scatter pass data around a ring, each chip to the
  nearest chip of its group: with n chips, a share (n-1)/n of the array leaves
  each chip. An all-reduce does both. In an all-to-all every pair of chips
  exchanges its own data. Every hop occupies one link.
  """
  size = collective.groups.shape[1]
  if size == 1:
    return 0.0
  hops = _hops(collective.groups, tpu_slice, coordinates)
  sent = collective.bytes * (size - 1) / size
  if collective.kind == "collective-permute":
    return collective.bytes * float(hops[:, 0, 1].mean())
  if collective.kind.endswith("all-to-all"):
    return sent * float(hops.sum() / (hops.size - hops[..., 0].size))
  ring = sent * float(_nearest(hops).mean())
  return 2 * ring if collective.kind == "all-reduce" else ring


def _hops(
  groups: np.ndarray, tpu_slice: Slice, coordinates: np.ndarray
) -> np.ndarray:
  """(groups, n, n): number of links between the chips of a group."""
  position = coordinates[groups]
  distance = np.abs(position[:, :, None] - position[:, None, :])
  for axis, length in enumerate(tpu_slice.shape):
    if length % tpu_slice.chip.torus_multiple == 0:
      around = length - distance[..., axis]
      distance[..., axis] = np.minimum(distance[..., axis], around)
  return distance.sum(axis=-1)


def _nearest(hops: np.ndarray) -> np.ndarray:
  """(groups, n): number of links from each chip to the nearest other one."""
  return np.sort(hops, axis=-1)[..., 1]


def bottleneck(seconds: dict[str, float]) -> str:
  """The resource that bounds the step time."""
  return max(seconds, key=lambda resource: seconds[resource])
