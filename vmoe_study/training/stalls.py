"""Shows where a run hangs: the stacks of its threads when a step takes long."""

import collections
import contextlib
import faulthandler
import math
import statistics
import time
from collections.abc import Iterator

from absl import logging

SLOWER = 10  # Than the median of the recent steps.
LEAST_SECONDS = 10.0
RECENT_STEPS = 100
ENOUGH_STEPS = 10  # To know how long steps take.
STDERR = 2  # In notebooks `sys.stderr` is no file.


class StallWatch:
  """Prints the stacks of all threads, once for every step that hangs.

  A step hangs if the time since the end of the one before is `SLOWER` times the
  median of the recent ones, and at least `least_seconds`. A thread without the
  interpreter prints the stacks to stderr, so that code that holds its lock is
  seen too. The run goes on; when the step has ended, its time is logged.
  """

  def __init__(self, least_seconds: float = LEAST_SECONDS):
    self._least_seconds = least_seconds
    # A timer is a thread. For short steps not every one gets its own: one is
    # kept this long, and rings this much later.
    self._kept_seconds = least_seconds / 10
    self._armed = self._start = time.perf_counter()
    self._recent: collections.deque[float] = collections.deque(
      maxlen=RECENT_STEPS
    )

  def finished(self, step: int) -> None:
    """Tells that a step has finished; the next one begins."""
    seconds = time.perf_counter() - self._start
    if seconds > self._limit():
      logging.warning(
        "step %d took %.1f s, the median of those before is %.2f s. The stacks "
        "of all threads, while it hung, are above, on stderr.",
        step,
        seconds,
        statistics.median(self._recent),
      )
    self._recent.append(seconds)
    self._start = time.perf_counter()
    if self._start - self._armed > self._kept_seconds:
      self._arm()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Time in this context belongs to no step."""
    self.close()
    try:
      yield
    finally:
      self._start = time.perf_counter()
      self._arm()

  def close(self) -> None:
    """Stops watching."""
    faulthandler.cancel_dump_traceback_later()

  def _arm(self) -> None:
    self._armed = time.perf_counter()
    limit = self._limit()
    if limit < math.inf:
      faulthandler.dump_traceback_later(limit, file=STDERR)

  def _limit(self) -> float:
    """In seconds; infinite while too few steps are known."""
    if len(self._recent) < ENOUGH_STEPS:
      return math.inf
    slow = max(SLOWER * statistics.median(self._recent), self._least_seconds)
    return slow + self._kept_seconds
