"""A model of the time of a step, with every resource at its published peak.

Within a chip, computation and HBM traffic are assumed to overlap perfectly.
Communication adds to their time, except where the program's schedule runs other
operations between its start and its end. Other effects of a real chip are not
modelled, so the sum is not a bound; its parts "compute", "interconnect" and
"network" are lower bounds.
"""

from collections.abc import Callable

from vmoe_study.performance.hlo import (
  Collective,
  Event,
  Loop,
  Schedule,
  traffic,
)
from vmoe_study.performance.links import SliceLinks


def step_seconds(
  flops: float, schedule: Schedule, links: SliceLinks
) -> dict[str, float]:
  """Seconds of one step.

  Args:
    flops: FLOPs of one chip.
    schedule: schedule of the program.
    links: the links of the devices that it runs on.

  Returns:
    "compute" and "hbm": busy time of each; "interconnect" and "network":
    transfer time within and between slices; "exposed": the part of the transfer
    time in which a chip does nothing else; "step": the larger of "compute" and
    "hbm", plus "exposed".
  """
  chip = links.chip
  total = traffic(schedule)
  compute = flops / (chip.flops / chip.devices)
  hbm = total.hbm_bytes / (chip.hbm_bandwidth / chip.devices)
  busy = max(compute, hbm)
  seconds = [(c.count, links.seconds(c)) for c in total.collectives]
  # Every operation gets a share of the busy time by its HBM traffic.
  scale = busy / total.hbm_bytes if total.hbm_bytes else 0.0
  exposed = exposed_seconds(
    schedule, scale, lambda collective: sum(links.seconds(collective))
  )
  return {
    "compute": compute,
    "hbm": hbm,
    "interconnect": sum(count * inside for count, (inside, _) in seconds),
    "network": sum(count * between for count, (_, between) in seconds),
    "exposed": exposed,
    "step": busy + exposed,
  }


def exposed_seconds(
  schedule: Schedule,
  seconds_per_byte: float,
  wire_seconds: Callable[[Collective], float],
) -> float:
  """The time in which a chip only waits for communication.

  Operations run one after another. Started communication runs concurrently with
  them, one transfer after another. A loop begins and ends with no transfer in
  flight.

  Args:
    schedule: schedule of the program.
    seconds_per_byte: time of an operation, per byte of its HBM traffic.
    wire_seconds: time of a collective alone.
  """
  now = free = waited = 0.0
  arrives: dict[str, float] = {}
  for event in schedule:
    if isinstance(event, Loop):
      inner = exposed_seconds(event.body, seconds_per_byte, wire_seconds)
      work = traffic(event.body).hbm_bytes * seconds_per_byte
      waited += event.count * inner
      now += event.count * (inner + work)
      continue
    now += event.hbm_bytes * seconds_per_byte
    if event.collective:
      free = max(now, free) + wire_seconds(event.collective)
      arrives[event.starts] = free
    # A synchronous operation waits for its own communication.
    due = _due(event, arrives)
    waited += max(due - now, 0.0)
    now = max(due, now)
  return waited


def _due(event: Event, arrives: dict[str, float]) -> float:
  """When the communication that an operation waits for has arrived."""
  if event.collective and not event.starts:
    return arrives[""]
  return arrives.get(event.ends, 0.0) if event.ends else 0.0


def bottleneck(seconds: dict[str, float]) -> str:
  """The bottleneck: "compute", "hbm" or "exposed" communication."""
  return max(("compute", "hbm", "exposed"), key=lambda name: seconds[name])
