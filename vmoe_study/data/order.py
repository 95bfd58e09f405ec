"""The order in which training reads a data set: position -> example.

An order is an infinite sequence. Epoch e consists of positions [e N, (e + 1)
N), a permutation of the N examples that depends only on the seed and e.

`FullOrder` permutes single examples. From an object store every example is then
one request.

`BlockOrder` reads blocks of neighbouring examples with one request each:

1. The blocks of the data set are permuted, which puts its examples in a row.
2. The row is cut into one segment per lane. Position p belongs to lane p mod L,
   so every batch has equally many examples of each lane, and no block is read
   by two hosts or workers, except for blocks that a cut divides.
3. A lane shuffles its segment in windows of a few blocks. The lanes are out of
   phase, so that blocks are needed at an even rate.

L does not depend on the number of hosts or workers, so neither does the order.
All lanes together hold `WINDOW_BLOCKS` blocks in memory, which is the size of
the shuffle buffer.
"""

import dataclasses
import itertools
import math
import sys
from collections.abc import Sequence
from typing import Protocol

import grain
import numpy as np

WINDOW_BLOCKS = 128
LANE_BLOCKS = 8  # At least, as each lane may divide a block.
LONGEST_RUN = 64  # Examples, where there are no blocks.
Run = tuple[int, int]  # Examples [start, stop), read with one request.


@dataclasses.dataclass(frozen=True, eq=False)
class Window:
  """Examples that are shuffled together and therefore held in memory together.

  Attributes:
    examples: the examples in shuffled order.
    runs: the same examples as runs of consecutive ones, as they are read.
  """

  examples: np.ndarray
  runs: Sequence[Run]

  @classmethod
  def of(cls, examples: Sequence[int]) -> "Window":
    """A window of examples that are read in this order."""
    runs: list[Run] = []
    for example in map(int, examples):
      if (
        runs and runs[-1][1] == example and example - runs[-1][0] < LONGEST_RUN
      ):
        runs[-1] = runs[-1][0], example + 1
      else:
        runs.append((example, example + 1))
    return cls(np.asarray(examples, np.int64), runs)

  def runs_from(self, place: int) -> Sequence[Run]:
    """The runs to read if the examples before an index are not needed."""
    left = np.sort(self.examples[place:])
    found = np.searchsorted(left, self.runs)
    return [run for run, (a, b) in zip(self.runs, found, strict=True) if a < b]


class Order(Protocol):
  """An order, see the module's docstring; picklable for worker processes."""

  def __len__(self) -> int:
    """sys.maxsize, because the order is infinite."""

  def __getitem__(self, position: int) -> int:
    """The example at a position."""

  def window(self, position: int) -> tuple[Window, int]:
    """The window of the example at a position, and its index in the window."""


class FullOrder:
  """An order that permutes single examples."""

  def __init__(self, num_examples: int, seed: int):
    """Takes the number of examples, and a seed in [0, 2**32)."""
    self.examples: grain.MapDataset = (
      grain.MapDataset.range(num_examples).seed(seed).shuffle().repeat()
    )

  def __len__(self) -> int:
    return len(self.examples)

  def __getitem__(self, position: int) -> int:
    return int(self.examples[position])

  def window(self, position: int) -> tuple[Window, int]:
    return Window.of([self[position]]), 0


class BlockOrder:
  """An order that permutes blocks, and shuffles the examples of a few blocks.

  Attributes:
    examples: the order as a Grain data set.
  """

  def __init__(self, blocks: np.ndarray, seed: int, lanes: int):
    """Prepares the order.

    Args:
      blocks: int64 (M + 1,), the first example of every block, and N.
      seed: in [0, 2**32).
      lanes: L, at most `WINDOW_BLOCKS`.
    """
    self._blocks, self._seed, self._lanes = blocks, seed, lanes
    self._size = int(blocks[-1])
    self._window_blocks = max(1, WINDOW_BLOCKS // lanes)

  @property
  def examples(self) -> grain.MapDataset:
    return grain.MapDataset.source(self).seed(self._seed)

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, position: int) -> int:
    window, offset = self.window(position)
    return int(window.examples[offset])

  def __getstate__(self) -> dict:
    return {k: v for k, v in vars(self).items() if not k.startswith("_cached")}

  def window(self, position: int) -> tuple[Window, int]:
    epoch, lane = position // self._size, position % self._lanes
    first = self._first(epoch, lane)
    row = self._row(epoch)
    start = row.segments[lane] + (position - first) // self._lanes
    # The block at this place of the row, counted from the segment's first.
    block = int(np.searchsorted(row.ends, start, side="right"))
    base = int(np.searchsorted(row.ends, row.segments[lane], side="right"))
    number = (block - base + self._shift(lane)) // self._window_blocks
    window, begin = self._window(epoch, lane, base, number)
    return window, start - begin

  def _first(self, epoch: int, lane: int) -> int:
    """The first position of a lane in an epoch."""
    begin = epoch * self._size
    return begin + (lane - begin) % self._lanes

  def _shift(self, lane: int) -> int:
    """Blocks missing from a lane's first window, to put lanes out of phase."""
    return lane * self._window_blocks // self._lanes

  def _row(self, epoch: int) -> "_Row":
    """The permuted blocks of an epoch; the last two epochs are cached."""
    rows = self.__dict__.setdefault("_cached_rows", {})
    if epoch not in rows:
      while len(rows) > 1:
        rows.pop(min(rows))
      rows[epoch] = self._make_row(epoch)
    return rows[epoch]

  def _make_row(self, epoch: int) -> "_Row":
    rng = np.random.default_rng([self._seed, epoch])
    blocks = rng.permutation(len(self._blocks) - 1)
    ends = np.cumsum(np.diff(self._blocks)[blocks])
    end = (epoch + 1) * self._size
    firsts = [self._first(epoch, lane) for lane in range(self._lanes)]
    counts = [max(0, -(-(end - first) // self._lanes)) for first in firsts]
    segments = [0, *itertools.accumulate(counts)]
    return _Row(blocks, ends, segments)

  def _window(
    self, epoch: int, lane: int, base: int, number: int
  ) -> tuple[Window, int]:
    """A window of a lane's segment, and its start in the row."""
    windows = self.__dict__.setdefault("_cached_windows", {})
    key = epoch, lane, number
    if key not in windows:
      while len(windows) >= 4 * self._lanes:
        windows.pop(next(iter(windows)))
      windows[key] = self._make_window(epoch, lane, base, number)
    return windows[key]

  def _make_window(
    self, epoch: int, lane: int, base: int, number: int
  ) -> tuple[Window, int]:
    row = self._row(epoch)
    begin, end = row.segments[lane], row.segments[lane + 1]
    first = base + number * self._window_blocks - self._shift(lane)
    last = min(first + self._window_blocks, len(row.ends))
    runs, starts = [], []
    for place in range(max(first, base), last):
      block = row.blocks[place]
      stop = int(row.ends[place])
      size = int(self._blocks[block + 1] - self._blocks[block])
      start = stop - size
      low, high = max(start, begin), min(stop, end)  # Cuts divide blocks.
      if low < high:
        shift = int(self._blocks[block]) - start
        runs.append((low + shift, high + shift))
        starts.append(low)
    examples = np.concatenate([np.arange(*run) for run in runs])
    rng = np.random.default_rng([self._seed, epoch, lane, number])
    return Window(rng.permutation(examples), runs), starts[0]


@dataclasses.dataclass(frozen=True)
class _Row:
  """All examples of an epoch in the order of the permuted blocks.

  Attributes:
    blocks: numbers of the blocks.
    ends: end of each block in the row.
    segments: start of each lane's segment in the row, and N.
  """

  blocks: np.ndarray
  ends: np.ndarray
  segments: Sequence[int]


def num_lanes(batch_size: int, num_blocks: int) -> int:
  """The number of lanes: a power of two that divides the batch size.

  It is small enough that each lane has several blocks.

  Args:
    batch_size: global batch size.
    num_blocks: number of blocks of the data set.
  """
  most = min(WINDOW_BLOCKS, max(1, num_blocks // LANE_BLOCKS))
  return math.gcd(batch_size, 2 ** int(math.log2(most)))
