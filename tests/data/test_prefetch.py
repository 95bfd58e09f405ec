"""Preparing ahead: order, errors, waiting time, closing."""

import itertools
import threading
import time

import pytest

from vmoe_study.data.prefetch import Prefetcher


def test_items_arrive_in_order_and_put():
  batches = Prefetcher(iter(range(50)), lambda x: -x)
  assert list(batches) == [-x for x in range(50)]
  assert list(batches) == []
  batches.close()


def test_an_error_is_raised_where_the_batch_is_used():
  def source():
    yield 1
    raise ValueError("broken record")

  batches = Prefetcher(source(), lambda x: x)
  assert next(batches) == 1
  for _ in range(2):
    with pytest.raises(ValueError, match="broken record"):
      next(batches)


def test_an_error_of_the_transfer_is_raised_too():
  batches = Prefetcher(iter([0]), lambda x: 1 / x)
  with pytest.raises(ZeroDivisionError):
    next(batches)


def test_it_works_ahead_by_size_and_no_further():
  made = []

  def source():
    for number in itertools.count():
      made.append(number)
      yield number

  put = []
  batches = Prefetcher(source(), put.append, size=2)
  deadline = time.monotonic() + 5
  while len(made) < 3 and time.monotonic() < deadline:
    time.sleep(0.01)
  time.sleep(0.05)
  assert made == [0, 1, 2]  # Two wait; the third waits for room.
  assert not put  # Nothing goes to the devices before it is asked for.
  next(batches)
  assert put == [0]
  batches.close()


def test_waiting_is_measured():
  def slow():
    for number in range(4):
      time.sleep(0.05)
      yield number

  batches = Prefetcher(slow(), lambda x: x)
  list(batches)
  assert 0.15 < batches.wait_seconds < 1.0
  fast = Prefetcher(iter(range(4)), lambda x: x)
  time.sleep(0.05)
  list(fast)
  assert fast.wait_seconds < 0.05


def test_closing_ends_the_thread_and_the_source():
  closed = threading.Event()

  def source():
    try:
      yield from itertools.count()
    finally:
      closed.set()

  before = threading.active_count()
  batches = Prefetcher(source(), lambda x: x)
  assert next(batches) == 0
  batches.close()
  assert closed.is_set()
  assert threading.active_count() == before
