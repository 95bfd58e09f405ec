"""Shows where a run hangs: logs the stacks of its threads if a step hangs."""

import collections
import contextlib
import math
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Iterator

from absl import logging

SLOW_FACTOR = 10  # Times the median of the recent steps.
LEAST_SECONDS = 10.0
RECENT_STEPS = 100
ENOUGH_STEPS = 10  # To know how long steps take.


class StallWatch:
  """Logs the stacks of all threads, once for every step that hangs.

  A step hangs if the time since the end of the previous step is `SLOW_FACTOR`
  times the median of the recent steps, and at least `least_seconds`. The run
  continues; when the step has ended, its time is logged.

  A Python thread inspects the others. It sees threads that wait for devices,
  other hosts, data or files, but not compiled code that holds the GIL, which
  only an external tool such as py-spy can show. The timer of `faulthandler`,
  which does not need the GIL, is not used: it reads stacks while they change,
  which ended some runs with a segmentation fault.
  """

  def __init__(self, least_seconds: float = LEAST_SECONDS):
    self._least_seconds = least_seconds
    self._start = time.perf_counter()
    self._recent: collections.deque[float] = collections.deque(
      maxlen=RECENT_STEPS
    )
    self._deadline = math.inf  # Read by the thread; infinity: do not watch.
    self._shown = False  # The stacks, for the step that runs.
    self._closed = threading.Event()
    self._thread: threading.Thread | None = None

  def step_finished(self, step: int) -> None:
    """Records that a step has finished and the next one begins."""
    seconds = time.perf_counter() - self._start
    if self._shown:
      logging.warning(
        "step %d took %.1f s; the median of the steps before it is %.2f s. The "
        "stacks of all threads while it hung are logged above.",
        step,
        seconds,
        statistics.median(self._recent),
      )
    self._recent.append(seconds)
    self._begin()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Time in this context does not count as part of a step."""
    self._deadline = math.inf
    try:
      yield
    finally:
      self._begin()

  def close(self) -> None:
    """Stops watching."""
    self._closed.set()
    if self._thread is not None:
      self._thread.join()

  def _begin(self) -> None:
    self._shown = False
    self._start = time.perf_counter()
    self._deadline = self._start + self._limit()
    if self._thread is None and self._deadline < math.inf:
      self._thread = threading.Thread(target=self._watch, daemon=True)
      self._thread.start()

  def _limit(self) -> float:
    """The limit in seconds; infinite while too few steps are known."""
    if len(self._recent) < ENOUGH_STEPS:
      return math.inf
    slow = SLOW_FACTOR * statistics.median(self._recent)
    return max(slow, self._least_seconds)

  def _watch(self) -> None:
    while not self._closed.wait(self._least_seconds / 10):
      if time.perf_counter() > self._deadline and not self._shown:
        self._shown = True
        logging.warning("a step hangs. Its threads:\n%s", stacks())


def stacks() -> str:
  """The stacks of all other threads, each with the most recent call last."""
  names = {thread.ident: thread.name for thread in threading.enumerate()}
  return "\n".join(
    f"Thread {names.get(ident, ident)}:\n"
    + "".join(traceback.format_stack(frame))
    for ident, frame in sys._current_frames().items()
    if ident != threading.get_ident()
  )
