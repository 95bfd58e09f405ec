"""Seconds per step, at best: each resource at its published peak.

Computation, HBM and interconnect work at the same time, so that the slowest of
the three bounds the step from below. Real steps take longer.
"""

import numpy as np

from vmoe_study.performance.chips import Slice
from vmoe_study.performance.hlo import Collective, Traffic


def step_seconds(
  flops: float, traffic: Traffic, where: Slice, coordinates: np.ndarray
) -> dict[str, float]:
  """{"compute", "hbm", "interconnect"}: seconds that each resource is busy.

  Args:
    flops: per chip.
    traffic: per chip.
    where: the slice that the program runs on.
    coordinates: (chips, axes): of each chip in the slice, in the order by which
      the collectives number them.
  """
  wire = sum(
    c.count * wire_bytes(c, where, coordinates) for c in traffic.collectives
  )
  return {
    "compute": flops / where.chip.flops,
    "hbm": traffic.hbm_bytes / where.chip.hbm_bandwidth,
    "interconnect": wire / where.chip.ici_bandwidth,
  }


def wire_bytes(
  collective: Collective, where: Slice, coordinates: np.ndarray
) -> float:
  """Bytes over the links of one chip, on average over the chips.

  Gathering and scattering pass around rings, each chip to the nearest of its
  group: with n chips, a share (n-1)/n of the array leaves each chip; an
  all-reduce does both. In an all-to-all each pair has its own data. Each hop on
  the way takes a link.
  """
  size = collective.groups.shape[1]
  if size == 1:
    return 0.0
  hops = _hops(collective.groups, where, coordinates)
  sent = collective.bytes * (size - 1) / size
  if collective.kind == "collective-permute":
    return collective.bytes * float(hops[:, 0, 1].mean())
  if collective.kind.endswith("all-to-all"):
    return sent * float(hops.sum() / (hops.size - hops[..., 0].size))
  ring = sent * float(_nearest(hops).mean())
  return 2 * ring if collective.kind == "all-reduce" else ring


def _hops(
  groups: np.ndarray, where: Slice, coordinates: np.ndarray
) -> np.ndarray:
  """(groups, n, n): links between the chips of a group."""
  place = coordinates[groups]
  apart = np.abs(place[:, :, None] - place[:, None, :])
  for axis, length in enumerate(where.shape):
    if length % where.chip.torus_multiple == 0:
      around = length - apart[..., axis]
      apart[..., axis] = np.minimum(apart[..., axis], around)
  return apart.sum(axis=-1)


def _nearest(hops: np.ndarray) -> np.ndarray:
  """(groups, n): links from each chip to the nearest other one."""
  return np.sort(hops, axis=-1)[..., 1]


def binding(seconds: dict[str, float]) -> str:
  """The resource that bounds the step."""
  return max(seconds, key=lambda resource: seconds[resource])
