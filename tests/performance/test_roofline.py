"""Chips by name, and seconds on links, against arithmetic by hand."""

import numpy as np
import pytest

from vmoe_study.performance import roofline
from vmoe_study.performance.chips import CHIPS, GPUS, parse_gpus, parse_slice
from vmoe_study.performance.hlo import Collective, Event, Loop
from vmoe_study.performance.links import NodeLinks, SliceLinks


def slice_links(name, slices=1):
  """The chips of some slices, row by row."""
  where = parse_slice(name)
  grid = np.indices(where.shape)
  places = np.stack(grid, axis=-1).reshape(-1, len(where.shape))
  return SliceLinks(
    where,
    np.tile(places, (slices, 1)),
    np.repeat(np.arange(slices), len(places)),
  )


def everyone(kind, wires, size=1e6):
  chips = np.arange(len(wires.coordinates))[None]
  return Collective(kind, size, chips)


def test_slices_by_name():
  where = parse_slice("v5p:4x4x8")
  assert where.shape == (4, 4, 8)
  assert where.chip is CHIPS["v5p"]


@pytest.mark.parametrize(
  "name, message",
  [
    ("v9:2x2", "v4, v5e, v5p, v6e"),
    ("v5e", "v5e:4x4"),
    ("v5e:4x4x4", "2 dimensions"),
    ("v5p:4x4", "3 dimensions"),
    ("v5e:0x4", "2 dimensions"),
  ],
)
def test_unknown_slices_are_errors_that_list_the_known(name, message):
  with pytest.raises(ValueError, match=message):
    parse_slice(name)


def test_every_chip_has_its_source():
  for chip in CHIPS.values():
    assert chip.source.startswith("https://cloud.google.com/tpu/docs/")
  for chip in GPUS.values():
    assert chip.source.startswith("https://www.nvidia.com/")


def test_gpus_by_name():
  assert parse_gpus("h100:16") == (GPUS["h100"], 16)
  for name in ("a100:8", "h100", "h100:0"):
    with pytest.raises(ValueError, match="h100:8"):
      parse_gpus(name)


@pytest.mark.parametrize(
  ("name", "wraps"),
  [
    ("v5e:4x4", (False, False)),
    ("v5e:8x16", (False, True)),
    ("v5e:16x16", (True, True)),
    ("v5p:2x4x4", (False,) * 3),
    ("v5p:4x4x8", (True,) * 3),
  ],
)
def test_tori_and_grids(name, wraps):
  assert parse_slice(name).wraps == wraps


def test_the_busiest_link_bounds_an_all_to_all():
  """Half of what one half of a grid has goes through its middle."""
  for name, columns, halves in (("v5e:4x4", 4, 1), ("v5e:16x16", 16, 2)):
    wires = slice_links(name)
    chips = len(wires.coordinates)
    crossing = chips / 2 * 1e6 / 2  # In one direction.
    links = columns * halves  # A torus is cut in two places.
    seconds, network = wires.seconds(everyone("all-to-all", wires))
    assert seconds == pytest.approx(crossing / links / 50e9)
    assert network == 0


def test_an_exchange_along_a_row_uses_its_links_only():
  wires = slice_links("v5e:4x4")
  rows = Collective("all-to-all", 1e6, np.arange(16).reshape(4, 4))
  # Two chips send half of their data over the middle link.
  assert wires.seconds(rows) == (pytest.approx(2 * 1e6 / 2 / 50e9), 0)


def test_rings_are_as_fast_as_the_chip_with_the_fewest_links():
  """In the corner of a grid a chip has two links, on a torus four."""
  shares = {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 2}
  for name, links in (("v5e:2x4", 2), ("v5e:16x16", 4), ("v5p:4x4x4", 6)):
    wires = slice_links(name)
    chips = len(wires.coordinates)
    bandwidth = 100e9 if name.startswith("v5p") else 50e9
    for kind, times in shares.items():
      expected = times * 1e6 * (chips - 1) / chips / (links * bandwidth)
      found = wires.seconds(everyone(kind, wires))
      assert found == (pytest.approx(expected), 0)


def test_rings_of_chips_that_are_not_neighbours_take_more_links():
  corners = Collective("all-gather", 1e6, np.array([[0, 2, 8, 10]]))
  expected = 1e6 * 3 / 4 * 2 / (2 * 50e9)
  assert slice_links("v5e:4x4").seconds(corners) == (pytest.approx(expected), 0)


def test_two_devices_of_a_chip_share_its_links():
  where = parse_slice("tpu7x:2x2x1")
  places = np.array([[x, y, 0] for x in (0, 1) for y in (0, 1)])
  alone = SliceLinks(where, places, np.zeros(4, int))
  both = SliceLinks(where, np.repeat(places, 2, axis=0), np.zeros(8, int))
  pairs = Collective("all-reduce", 1e6, np.array([[0, 1], [2, 3]]))
  assert both.seconds(pairs) == (0, 0)  # Within a chip.
  one, two = (
    w.seconds(everyone("all-to-all", w, size))[0]
    for w, size in ((alone, 2e6), (both, 1e6))
  )
  assert one == pytest.approx(two)


def test_slices_share_the_way_over_the_network():
  wires = slice_links("v5e:2x2", slices=2)
  # Each chip holds a quarter of the sum of its slice, and swaps it.
  inside, network = wires.seconds(everyone("all-reduce", wires))
  assert inside == pytest.approx(2 * 1e6 * 3 / 4 / (2 * 50e9))
  assert network == pytest.approx(2 * (1e6 / 4) / 2 / (25e9 / 8))
  inside, network = wires.seconds(everyone("all-to-all", wires))
  assert network == pytest.approx(1e6 / 2 / (25e9 / 8))


def test_gpus_exchange_within_nodes_and_between_them():
  wires = NodeLinks(GPUS["h100"], per_node=8)
  whole = np.arange(16)[None]
  inside, network = wires.seconds(Collective("all-to-all", 1e6, whole))
  assert inside == pytest.approx(1e6 * 7 / 16 / 450e9)
  assert network == pytest.approx(1e6 / 2 / 50e9)
  node = Collective("all-reduce", 1e6, whole.reshape(2, 8))
  assert wires.seconds(node) == (pytest.approx(2e6 * 7 / 8 / 450e9), 0)


def test_a_group_of_one_sends_nothing():
  wires = slice_links("v5e:1x1")
  for kind in ("all-gather", "all-reduce", "all-to-all"):
    assert wires.seconds(everyone(kind, wires)) == (0, 0)


def test_a_step_is_work_over_peaks_and_what_nothing_overlaps():
  wires = slice_links("v5e:2x2")
  reduce = Collective("all-reduce", 1e9, np.array([[0, 1], [2, 3]]))
  schedule = (Event(819e9), Loop((Event(0.0, reduce),), 2))
  seconds = roofline.step_seconds(98.5e12, schedule, wires)
  wire = 2 * 1e9 / 50e9
  assert seconds == pytest.approx(
    {
      "compute": 0.5,
      "hbm": 1.0,
      "interconnect": wire,
      "network": 0.0,
      "exposed": wire,
      "step": 1.0 + wire,
    }
  )
  assert roofline.bottleneck(seconds) == "hbm"


COLLECTIVE = Collective("all-reduce", 0.0, np.array([[0, 1]]))  # Takes 10 s.


@pytest.mark.parametrize(
  ("schedule", "waited"),
  [
    ([Event(3), Event(2, COLLECTIVE), Event(3)], 10),
    ([Event(0, COLLECTIVE, starts="a"), Event(4), Event(0, ends="a")], 6),
    ([Event(0, COLLECTIVE, starts="a"), Event(40), Event(0, ends="a")], 0),
    # Nothing runs between start and end.
    ([Event(0, COLLECTIVE, starts="a"), Event(0, ends="a"), Event(9)], 10),
    # Two on the way at once take turns.
    (
      [
        Event(0, COLLECTIVE, starts="a"),
        Event(0, COLLECTIVE, starts="b"),
        Event(12),
        Event(0, ends="a"),
        Event(3),
        Event(0, ends="b"),
      ],
      5,
    ),
    # A synchronous one waits for the links.
    ([Event(0, COLLECTIVE, starts="a"), Event(4), Event(0, COLLECTIVE)], 16),
    ([Loop((Event(1, COLLECTIVE),), 3), Event(5)], 30),
    (
      [
        Event(0, COLLECTIVE, starts="a"),
        Loop((Event(2),), 3),
        Event(0, ends="a"),
      ],
      4,
    ),
  ],
)
def test_communication_hides_behind_what_runs_between(schedule, waited):
  found = roofline.exposed_seconds(schedule, 1.0, lambda collective: 10.0)
  assert found == waited
