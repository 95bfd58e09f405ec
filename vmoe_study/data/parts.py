"""The work of a worker: the same part of every batch.

A global batch is a row of positions. Each host takes a contiguous part of the
row, and each of its workers a contiguous part of that. The example at a
position depends neither on the number of hosts nor on that of workers.
"""

import copy
import dataclasses
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator, MutableMapping, Sequence

import grain
import numpy as np

from vmoe_study.data.examples import Batch, Example, ExampleReader, collate
from vmoe_study.data.order import BlockOrder, Order, Run, Window
from vmoe_study.data.read_ahead import ReadAhead

# Number of examples of a part that are read while earlier ones are decoded:
# about a second of work, enough to retry a request.
EXAMPLES_AHEAD = 512


@dataclasses.dataclass(frozen=True)
class HostRows:
  """The rows of the global batch that one host computes."""

  batch_size: int
  process_index: int
  process_count: int

  @property
  def host_size(self) -> int:
    return self.batch_size // self.process_count

  def local(self, number: int, count: int) -> range:
    """Part `number` of `count`, as rows of the batch of this host."""
    start, stop = (self.host_size * n // count for n in (number, number + 1))
    return range(start, stop)

  def of(self, number: int, count: int) -> range:
    """The rows of part `number` of `count` of this host."""
    first, rows = self.process_index * self.host_size, self.local(number, count)
    return range(first + rows.start, first + rows.stop)


@dataclasses.dataclass(frozen=True)
class TrainParts:
  """Training batches; see `order` for batches and positions.

  Attributes:
    readers: readers of the mixed data sets.
    orders: orders of their examples.
    weights: weights of the data sets.
    rows: rows of this host.
    lanes: number of lanes of the orders.
    read_threads: number of threads that read for each part.
  """

  readers: Sequence[ExampleReader]
  orders: Sequence[Order]
  weights: Sequence[float]
  rows: HostRows
  lanes: int
  read_threads: int

  @property
  def shape(self) -> tuple[int, ...]:
    """See `workers.Parts`."""
    return self.rows.host_size, *self.readers[0].image_shape

  @functools.cached_property
  def _mixed(self) -> grain.MapDataset:
    """(data set, position in its order) for every position in a lane."""
    places = [
      grain.MapDataset.source(range(len(order))).map(
        functools.partial(_numbered, number)
      )
      for number, order in enumerate(self.orders)
    ]
    if len(places) == 1:
      return places[0]
    return grain.MapDataset.mix(places, self.weights)

  def position(self, step: int, row: int) -> tuple[int, int]:
    """The data set, and the position in its order, of a row of a batch.

    The rows of a lane are contiguous in the batch, and consecutive rows have
    consecutive examples of the lane.
    """
    size = self.rows.batch_size // self.lanes  # Of a lane, in one batch.
    lane, place = divmod(row, size)
    number, position = self._mixed[step * size + place]
    return number, position * self.lanes + lane

  def examples(self, step: int) -> list[tuple[int, int]]:
    """(data set, example) of every row of a global batch."""
    rows = range(self.rows.batch_size)
    places = [self.position(step, row) for row in rows]
    return [(number, self.orders[number][p]) for number, p in places]

  def open(
    self, number: int, count: int, examples_ahead: int = EXAMPLES_AHEAD
  ) -> "_Part":
    """See `workers.Parts`; reads the next examples in the background.

    If `examples_ahead` is 0, it reads only those of a batch, one by one.
    """
    rows = self.rows.of(number, count)
    readers = [
      _with_read_ahead(reader, self.read_threads, isinstance(order, BlockOrder))
      for reader, order in zip(self.readers, self.orders, strict=True)
    ]
    examples = [
      order.examples.random_map(reader.read_or_next)
      for order, reader in zip(self.orders, readers, strict=True)
    ]

    # Examples before the first step in its windows are not read.
    needed: MutableMapping[Window, Sequence[Run]] = weakref.WeakKeyDictionary()

    def runs(step: int) -> Iterator[tuple[int, Sequence[Run]]]:
      for data_set, position in (self.position(step, row) for row in rows):
        if not examples_ahead:
          yield data_set, Window.of([self.orders[data_set][position]]).runs
          continue
        window, place = self.orders[data_set].window(position)
        if window not in needed:
          needed[window] = window.runs_from(place)
        yield data_set, needed[window]

    def compute(step: int) -> Iterator[Example]:
      for row in rows:
        data_set, position = self.position(step, row)
        yield examples[data_set][position]

    local = self.rows.local(number, count)
    return _Part(readers, runs, compute, local, examples_ahead)


@dataclasses.dataclass(frozen=True)
class EvalParts:
  """Evaluation batches: examples in a given order.

  Attributes:
    reader: reader of the data set.
    indices: indices of the examples; an index beyond the end is padding.
    rows: rows of this host.
    read_threads: number of threads that read for each part.
  """

  reader: ExampleReader
  indices: np.ndarray
  rows: HostRows
  read_threads: int

  @property
  def shape(self) -> tuple[int, ...]:
    """See `workers.Parts`."""
    return self.rows.host_size, *self.reader.image_shape

  def __len__(self) -> int:
    """Number of batches."""
    return len(self.indices) // self.rows.batch_size

  def open(
    self, number: int, count: int, examples_ahead: int = EXAMPLES_AHEAD
  ) -> "_Part":
    """See `workers.Parts`; reads the next examples in the background."""
    rows = self.rows.of(number, count)
    reader = _with_read_ahead(self.reader, self.read_threads)

    def indices(step: int) -> np.ndarray:
      first = step * self.rows.batch_size
      return self.indices[first + rows.start : first + rows.stop]

    def runs(step: int) -> Iterator[tuple[int, Sequence[Run]]]:
      found = indices(step)
      yield 0, Window.of(found[found < len(reader.source)]).runs

    def compute(step: int) -> Iterator[Example]:
      return (reader.read_or_mask(int(index)) for index in indices(step))

    local = self.rows.local(number, count)
    return _Part([reader], runs, compute, local, examples_ahead)


class _Part:
  """Computes a part of every batch while reading for the next ones."""

  def __init__(
    self,
    readers: Sequence[ExampleReader],
    runs: Callable[[int], Iterator[tuple[int, Sequence[Run]]]],
    compute: Callable[[int], Iterator[Example]],
    rows: range,
    examples_ahead: int,
  ):
    """Prepares the part.

    Args:
      readers: readers of the examples.
      runs: function of the step that returns the runs to read.
      compute: function of the step that returns the examples.
      rows: the rows of the batch of this host that the examples are.
      examples_ahead: number of examples to read ahead.
    """
    self._sources = [reader.source for reader in readers]
    self._runs, self._compute, self._rows = runs, compute, rows
    self._steps_ahead = -(-examples_ahead // len(rows))
    self._expected: dict[int, list[list[Run]]] = {}
    self._counted = np.zeros(3)

  def __call__(self, step: int, images: np.ndarray) -> Batch:
    self._read_ahead_for(range(step, step + self._steps_ahead + 1))
    rows = images[self._rows.start : self._rows.stop]
    batch = collate(self._compute(step), rows)
    before, self._counted = self._counted, self._counters()
    return batch | {"reading": self._counted - before}

  def _read_ahead_for(self, steps: range) -> None:
    """Starts to read what these steps need, in the order of the steps."""
    if not any(isinstance(source, ReadAhead) for source in self._sources):
      return
    known, self._expected = self._expected, {}
    for step in steps:
      self._expected[step] = known.get(step) or self._runs_by_data_set(step)
    for number, source in enumerate(self._sources):
      if isinstance(source, ReadAhead):
        by_step = [expected[number] for expected in self._expected.values()]
        source.expect(itertools.chain(*by_step))

  def _runs_by_data_set(self, step: int) -> list[list[Run]]:
    """The runs of a step, by data set."""
    lists: list[dict[int, Sequence[Run]]] = [{} for _ in self._sources]
    for number, runs in self._runs(step):
      lists[number][id(runs)] = runs  # Those of a window once.
    return [[*itertools.chain(*found.values())] for found in lists]

  def _counters(self) -> np.ndarray:
    """Requests, bytes and seconds of waiting of this part so far."""
    counters = np.zeros(3)
    for source in self._sources:
      if isinstance(source, ReadAhead):
        traffic = source.traffic
        counters += traffic.requests, traffic.bytes, source.wait_seconds
    return counters


def _with_read_ahead(
  reader: ExampleReader, threads: int, in_blocks: bool = False
) -> ExampleReader:
  """A reader that reads ahead, if that is useful."""
  if not (in_blocks or reader.source.is_remote):
    return reader
  reader = copy.copy(reader)
  reader.source = ReadAhead(reader.source, threads)
  return reader


def _numbered(number: int, position: int) -> tuple[int, int]:
  return number, position


def join(images: np.ndarray, parts: Sequence[Batch]) -> Batch:
  """Makes a batch of its images and of the other arrays of its parts."""
  batch = {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }
  sizes = [len(part["mask"]) for part in parts]
  firsts = np.cumsum([0, *sizes[:-1]])
  owners = zip(parts, firsts, strict=True)
  batch["owner"] = np.concatenate([p["owner"] + first for p, first in owners])
  batch["reading"] = sum(part["reading"] for part in parts)
  return {"image": images, **batch}
