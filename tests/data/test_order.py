"""Orders: every epoch is a permutation, and lanes do not share blocks."""

import itertools
import pickle

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vmoe_study.data.order import (
  LONGEST_RUN,
  WINDOW_BLOCKS,
  BlockOrder,
  Window,
  num_lanes,
)

SIZE, PER_BLOCK = 4000, 10
BLOCKS = np.append(np.arange(0, SIZE, PER_BLOCK), SIZE)


@settings(deadline=None, max_examples=30)
@given(
  cuts=st.sets(st.integers(1, 499), max_size=60),
  seed=st.integers(0, 2**32 - 1),
  lanes=st.sampled_from([1, 2, 8, 64, 128]),
  size=st.integers(500, 520),
)
def test_every_epoch_has_every_example_once(cuts, seed, lanes, size):
  order = BlockOrder(np.array([0, *sorted(cuts), size]), seed, lanes)
  for epoch in range(3):
    positions = range(epoch * size, (epoch + 1) * size)
    assert sorted(order[p] for p in positions) == list(range(size))


def test_an_example_is_in_its_window_and_the_window_in_its_runs():
  order = BlockOrder(BLOCKS, 1, 8)
  for position in range(0, 3 * SIZE, 37):
    window, place = order.window(position)
    assert window.examples[place] == order[position]
    runs = [i for run in window.runs for i in range(*run)]
    assert sorted(window.examples) == sorted(runs)
    assert len(window.runs) <= WINDOW_BLOCKS // 8
    left = set(window.examples[place:])
    needed = [set(range(*run)) for run in window.runs_from(place)]
    assert left <= set().union(*needed)
    assert all(run & left for run in needed)


def test_random_access_does_not_depend_on_what_was_read_before():
  order = BlockOrder(BLOCKS, 5, 16)
  expected = [order[p] for p in range(2 * SIZE)]
  copy = pickle.loads(pickle.dumps(order))
  assert [copy[p] for p in (7777, 3, 4001)] == [
    expected[p] for p in (7777, 3, 4001)
  ]
  assert expected[:SIZE] != expected[SIZE:]
  assert expected != [BlockOrder(BLOCKS, 6, 16)[p] for p in range(2 * SIZE)]


def test_lanes_share_no_blocks_but_those_that_a_cut_divides():
  lanes = 16
  order = BlockOrder(BLOCKS, 0, lanes)
  by_lane = [
    {order[p] // PER_BLOCK for p in range(lane, SIZE, lanes)}
    for lane in range(lanes)
  ]
  shared = [a & b for a, b in itertools.combinations(by_lane, 2)]
  assert sum(map(len, shared)) <= lanes - 1


def test_lanes_divide_the_batch_and_have_some_blocks():
  assert [num_lanes(b, 10**6) for b in (4096, 96, 7)] == [WINDOW_BLOCKS, 32, 1]
  assert [num_lanes(64, blocks) for blocks in (0, 7, 20, 150)] == [1, 1, 2, 16]


def test_a_window_is_read_in_runs_of_consecutive_examples():
  assert Window.of([3, 5, 6, 4, 2, 7]).runs == [
    (3, 4),
    (5, 7),
    (4, 5),
    (2, 3),
    (7, 8),
  ]
  long = Window.of(range(2 * LONGEST_RUN + 5))
  lengths = [stop - start for start, stop in long.runs]
  assert lengths == [LONGEST_RUN, LONGEST_RUN, 5]
