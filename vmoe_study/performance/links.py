"""Lower bounds of communication time on the links between chips.

A slice is a grid of chips with a link to each neighbour, in either direction.
On a torus the ends of an axis are linked, too. Slices are connected by the
data-centre network. Times are lower bounds: links at their published peak, no
latency, perfect algorithms.
"""

import dataclasses
import math

import numpy as np

from vmoe_study.performance.chips import Chip, Slice
from vmoe_study.performance.hlo import Collective


@dataclasses.dataclass(frozen=True)
class SliceLinks:
  """The links between the devices of a mesh.

  Attributes:
    tpu_slice: the kind of slice; all slices are equal.
    coordinates: (devices, axes): position of each device in its slice, in the
      order in which collectives number the devices.
    slice_of: (devices,): number of the slice of each device.
  """

  tpu_slice: Slice
  coordinates: np.ndarray
  slice_of: np.ndarray

  @property
  def chip(self) -> Chip:
    """The kind of chip."""
    return self.tpu_slice.chip

  @property
  def link_bandwidth(self) -> float:
    """Bytes/s of one link, in one direction."""
    return self.chip.ici_bandwidth / (2 * len(self.tpu_slice.shape))

  def seconds(self, collective: Collective) -> tuple[float, float]:
    """Time of one execution: within slices, and between them."""
    groups = collective.groups
    if groups.shape[1] == 1:
      return 0.0, 0.0
    if collective.kind == "collective-permute":
      share = collective.bytes * np.ones(len(groups))
      return self._permutation_seconds(groups[:, 0], groups[:, 1], share)
    if collective.kind.endswith("all-to-all"):
      size = groups.shape[1]
      sources = np.repeat(groups, size, axis=1).ravel()
      targets = np.tile(groups, (1, size)).ravel()
      share = np.full(len(sources), collective.bytes / size)
      return self._permutation_seconds(sources, targets, share)
    return self._ring_seconds(collective)

  def _permutation_seconds(
    self, sources: np.ndarray, targets: np.ndarray, sent: np.ndarray
  ) -> tuple[float, float]:
    """Time until every source has sent its bytes to its target."""
    away = self.slice_of[sources] != self.slice_of[targets]
    near = ~away
    load = self._link_load(
      self.coordinates[sources[near]],
      self.coordinates[targets[near]],
      self.slice_of[sources[near]],
      sent[near],
    )
    leaving = np.bincount(
      sources[away], sent[away], minlength=len(self.coordinates)
    )
    return load / self.link_bandwidth, self._network_seconds(
      float(leaving.max())
    )

  def _link_load(
    self,
    start: np.ndarray,
    goal: np.ndarray,
    slice_of: np.ndarray,
    sent: np.ndarray,
  ) -> float:
    """Bytes over the busiest link with dimension-ordered routing.

    Between opposite positions of a ring, half of the data goes each way.
    """
    shape = self.tpu_slice.shape
    position, busiest = start.copy(), 0.0
    for axis, length in enumerate(shape):
      step = goal[:, axis] - start[:, axis]
      if self.tpu_slice.wraps[axis]:
        step = (step + length // 2) % length - length // 2
      opposite = self.tpu_slice.wraps[axis] & (2 * np.abs(step) == length)
      for sign in (1, -1):
        part = np.where(opposite, 0.5, np.sign(step) == sign) * sent
        loads = np.zeros((slice_of.max(initial=0) + 1, *shape))
        place = position.copy()
        for hop in range(length):
          moving = (part > 0) & (hop < np.abs(step))
          if not moving.any():
            break
          where = (slice_of[moving], *place[moving].T)
          np.add.at(loads, where, part[moving])
          place[moving, axis] = (place[moving, axis] + sign) % length
        busiest = max(busiest, float(loads.max(initial=0.0)))
      position[:, axis] = goal[:, axis]
    return busiest

  def _ring_seconds(self, collective: Collective) -> tuple[float, float]:
    """Time of an all-gather, reduce-scatter or all-reduce.

    With n devices, each receives a fraction (n - 1) / n of the array over its
    links in the directions of its group. An all-reduce does that twice. Across
    S slices, the devices of a group that are in one slice share the work: each
    exchanges its part of the array with the other slices.
    """
    twice = 2 if collective.kind == "all-reduce" else 1
    groups = collective.groups
    slices = self.slice_of[groups]
    num_slices = len(np.unique(slices[0]))
    size = groups.shape[1] // num_slices
    between = 0.0
    if num_slices > 1:
      part = collective.bytes / size
      between = self._network_seconds(
        twice * part * (num_slices - 1) / num_slices
      )
    if size == 1:
      return 0.0, between
    order = np.argsort(slices, axis=1, kind="stable")
    inner = np.take_along_axis(groups, order, axis=1).reshape(-1, size)
    received = twice * collective.bytes * (size - 1) / size
    links, nearest = self._incoming_links(self.coordinates[inner])
    return received * nearest / (links * self.link_bandwidth), between

  def _incoming_links(self, places: np.ndarray) -> tuple[float, float]:
    """Links into the worst-placed device of any group, and their length.

    Args:
      places: (groups, n, axes).

    Returns:
      The smallest number of links from the directions in which a group lies,
      and the number of hops to the nearest other device of the group.
    """
    links = np.zeros(places.shape[:2])
    distance = np.zeros((*places.shape[:2], places.shape[1]))
    for axis, length in enumerate(self.tpu_slice.shape):
      place = places[:, :, axis]
      apart = place[:, None, :] - place[:, :, None]
      hops = np.abs(apart)
      if self.tpu_slice.wraps[axis]:
        links += 2.0 * (apart != 0).any(axis=2)
        hops = np.minimum(hops, length - hops)
      else:
        links += (apart > 0).any(axis=2)
        links += (apart < 0).any(axis=2)
      distance += hops
    # Devices on one chip share its links and need none between each other.
    sharing = self.chip.devices
    away = np.where(distance > 0, distance, math.inf).min(axis=2)
    nearest = float(np.where(np.isinf(away), 0.0, away).mean())
    return max(float(links.min()), 1.0) / sharing, nearest

  def _network_seconds(self, leaving: float) -> float:
    """Seconds for bytes to leave a device for another slice."""
    if not leaving:
      return 0.0
    return leaving / (self.chip.network_bandwidth / self.chip.devices)


@dataclasses.dataclass(frozen=True)
class NodeLinks:
  """GPUs in nodes, in order: a switch in each node, a network between nodes.

  Attributes:
    chip: the kind of GPU; its `ici_bandwidth` is that to the switch.
    per_node: GPUs in each node.
  """

  chip: Chip
  per_node: int = 8

  def seconds(self, collective: Collective) -> tuple[float, float]:
    """Time of one execution: within nodes, and between them."""
    size = collective.groups.shape[1]
    if size == 1:
      return 0.0, 0.0
    node = collective.groups // self.per_node
    inside = int((node == node[:, :1]).sum(axis=1).max())
    sent = collective.bytes * (size - 1) / size
    if collective.kind.endswith("all-to-all"):
      between = collective.bytes * (size - inside) / size
      return self._seconds(sent - between, between)
    twice = 2 if collective.kind == "all-reduce" else 1
    # The GPUs of a node share the transfer over the network.
    between = sent / inside if inside < size else 0.0
    return self._seconds(twice * sent, twice * between)

  def _seconds(self, inside: float, between: float) -> tuple[float, float]:
    chip = self.chip
    return inside / chip.ici_bandwidth, between / chip.network_bandwidth
