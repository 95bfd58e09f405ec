"""Progress of long work on stderr: a bar on a terminal, otherwise log lines."""

import contextlib
import datetime as dt
import logging as std_logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from absl import logging

T = TypeVar("T")

SECONDS = 10.0  # Between lines.
_BAR_SECONDS = 1.0  # Between updates of a bar that counts only time.
_TIME = "{desc}: {elapsed}{postfix}"


class Progress(contextlib.AbstractContextManager):
  """Counts units of work; shows the count, rate and remaining time.

  On a terminal, a bar is shown until the work is done. Elsewhere a line is
  logged every few seconds; short work logs none.
  """

  def __init__(
    self,
    what: str,
    total: int | None = None,
    unit: str = "",
    start: int = 0,
    every: float = SECONDS,
  ):
    """Starts to count.

    Args:
      what: the work, such as "evaluating test".
      total: number of units; None if it is not known.
      unit: plural, such as "images"; empty to show only the elapsed time.
      start: number of units that were done before.
      every: seconds between log lines; infinite for work that logs its own
        progress.
    """
    self._what, self._total, self._unit = what, total, unit
    self._start = self._count = start
    self._note = ""
    self._every = every
    self._began = self._told = time.monotonic()
    self._bar = self._open_bar() if sys.stderr.isatty() else None

  def advance(self, count: int = 1, note: str | None = None) -> None:
    """Counts finished units.

    Args:
      count: their number; 0 to update times and note.
      note: text shown from now on, such as "loss 0.5"; None keeps the last one.
    """
    self._count += count
    self._note = self._note if note is None else note
    if self._bar is not None:
      if note is not None:
        self._bar.set_postfix_str(note, refresh=False)
      self._bar.update(count)
      if not count:
        self._bar.refresh()
    elif time.monotonic() - self._told >= self._every:
      self._told = time.monotonic()
      logging.info("%s", self._line(self._told - self._began))

  def __exit__(self, *error) -> None:
    if self._bar is not None:
      logging.get_absl_handler().removeFilter(self._clear)
      self._bar.close()

  def _open_bar(self) -> Any:
    from tqdm import tqdm  # Takes time to import, and most work has no bar.

    # A line that is logged takes the place of the bar, which is drawn again.
    logging.get_absl_handler().addFilter(self._clear)
    return tqdm(
      total=self._total,
      desc=self._what,
      unit=f" {self._unit}",
      initial=self._start,
      leave=False,
      dynamic_ncols=True,
      bar_format=None if self._unit else _TIME,
    )

  def _clear(self, entry: std_logging.LogRecord) -> bool:
    del entry
    self._bar.clear()
    return True

  def _line(self, seconds: float) -> str:
    if not self._unit:
      parts = [f"{seconds:.0f} s"]
    else:
      rate = (self._count - self._start) / max(seconds, 1e-9)
      parts = [self._counted(), self._speed(rate)]
      if self._total is not None and rate:
        left = dt.timedelta(seconds=round((self._total - self._count) / rate))
        parts.append(f"ETA {left}")
    return f"{self._what}: {', '.join(filter(None, [*parts, self._note]))}"

  def _counted(self) -> str:
    of = "" if self._total is None else f" of {self._total:,}"
    return f"{self._count:,}{of} {self._unit}"

  def _speed(self, rate: float) -> str:
    if 0 < rate < 1:
      return f"{1 / rate:,.1f} s each"
    return f"{rate:,.0f} {self._unit}/s" if rate else ""


def track(
  items: Iterable[T], what: str, total: int | None, unit: str
) -> Iterator[T]:
  """Yields the items and shows how many have been processed.

  Args:
    items: to process.
    what: the work.
    total: number of items; None if it is not known.
    unit: plural, such as "batches".
  """
  with Progress(what, total, unit) as progress:
    for item in items:
      yield item
      progress.advance()


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
  """Shows, from a thread, how long the block has been running."""
  done = threading.Event()
  with Progress(what, every=SECONDS) as progress:

    def tell() -> None:
      while not done.wait(min(_BAR_SECONDS, SECONDS)):
        progress.advance(0)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
      yield
    finally:
      done.set()
      thread.join()
