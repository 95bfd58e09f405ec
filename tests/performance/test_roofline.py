"""Chips by name, and seconds from traffic, against arithmetic by hand."""

import numpy as np
import pytest

from vmoe_study.performance import roofline
from vmoe_study.performance.chips import CHIPS, parse_slice
from vmoe_study.performance.hlo import Collective, Traffic


def grid(where):
  """Coordinates of all chips, row by row."""
  return np.stack(np.indices(where.shape), axis=-1).reshape(-1, 2)


def everyone(kind, where, size=1e6):
  chips = np.arange(np.prod(where.shape))[None]
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


def test_hops_count_on_a_mesh_and_around_a_torus():
  # On a line of n, two chips are (n * n - 1) / 3n apart on average, themselves
  # included; on a ring n / 4.
  line = parse_slice("v5e:4x4")
  ring = parse_slice("v5e:16x16")
  sent = roofline.wire_bytes(everyone("all-to-all", line), line, grid(line))
  assert sent == pytest.approx(1e6 * 2 * 15 / 12)
  sent = roofline.wire_bytes(everyone("all-to-all", ring), ring, grid(ring))
  assert sent == pytest.approx(1e6 * 2 * 16 / 4)


def test_rings_pass_each_share_on():
  where = parse_slice("v5e:2x4")
  shares = {"all-gather": 7 / 8, "reduce-scatter": 7 / 8, "all-reduce": 14 / 8}
  for kind, share in shares.items():
    sent = roofline.wire_bytes(everyone(kind, where), where, grid(where))
    assert sent == pytest.approx(1e6 * share)


def test_rings_of_chips_that_are_not_neighbours_take_more_links():
  where = parse_slice("v5e:4x4")
  corners = Collective("all-gather", 1e6, np.array([[0, 2, 8, 10]]))
  sent = roofline.wire_bytes(corners, where, grid(where))
  assert sent == pytest.approx(1e6 * 3 / 4 * 2)


def test_a_group_of_one_sends_nothing():
  where = parse_slice("v5e:1x1")
  for kind in ("all-gather", "all-reduce", "all-to-all"):
    assert roofline.wire_bytes(everyone(kind, where), where, grid(where)) == 0


def test_seconds_are_work_over_peaks():
  where = parse_slice("v5e:2x2")
  reduce = Collective("all-reduce", 1e9, np.array([[0, 1], [2, 3]]), count=2)
  traffic = Traffic(819e9, (reduce,))
  seconds = roofline.step_seconds(98.5e12, traffic, where, grid(where))
  assert seconds == pytest.approx(
    {"compute": 0.5, "hbm": 1.0, "interconnect": 2e9 / 200e9}
  )
  assert roofline.bottleneck(seconds) == "hbm"
