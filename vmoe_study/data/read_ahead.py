"""Reads examples before they are needed, with many reads in flight."""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from vmoe_study.data.order import Run
from vmoe_study.data.records import RecordError, intact
from vmoe_study.data.sources import Source
from vmoe_study.files.ranges import TRAFFIC, Traffic

READ_THREADS = 16

Found = dict[str, Any] | RecordError


class ReadAhead:
  """A source that reads expected examples in the background.

  It holds only the examples of the expected runs. All other examples can be
  read too, but without reading ahead.

  Attributes:
    traffic: counts of requests and bytes.
    wait_seconds: total time in which `[]` has waited for reads.
  """

  def __init__(self, source: Source, threads: int = READ_THREADS):
    """Wraps a source; its attributes are available here too.

    Args:
      source: any source.
      threads: number of concurrent reads.
    """
    self.traffic = Traffic()
    self.wait_seconds = 0.0
    self._source = source
    self._runs: dict[Run, Future[Sequence[Found]]] = {}
    self._run_of: dict[int, Run] = {}
    self._threads = ThreadPoolExecutor(
      threads, "read_ahead", TRAFFIC.set, (self.traffic,)
    )

  def __getattr__(self, name: str) -> Any:
    return getattr(self._source, name)

  def __len__(self) -> int:
    return len(self._source)

  def expect(self, runs: Iterable[Run]) -> None:
    """Starts to read runs, in this order; drops all others."""
    expected = dict.fromkeys(runs)
    for run in [run for run in self._runs if run not in expected]:
      self._runs.pop(run).cancel()
      for index in range(*run):
        if self._run_of.get(index) == run:
          del self._run_of[index]
    for run in expected:
      if run not in self._runs:
        self._runs[run] = self._threads.submit(self._source.read, range(*run))
        self._run_of.update(dict.fromkeys(range(*run), run))

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns an example, like the source.

    Raises:
      RecordError: it is damaged.
      OSError: it cannot be read.
    """
    start = time.perf_counter()
    run = self._run_of.get(index)
    if run is None:
      (found,) = self._threads.submit(self._source.read, [index]).result()
    else:
      found = self._runs[run].result()[index - run[0]]
    self.wait_seconds += time.perf_counter() - start
    return intact(found)
