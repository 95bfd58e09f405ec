"""Arrays in anonymous memory that other processes can open (`memfd_create`)."""

import math
import mmap
import os
import weakref
from collections.abc import Sequence

import numpy as np


class SharedMemory(mmap.mmap):
  """Anonymous memory, and the descriptor of its file.

  Attributes:
    descriptor: closed together with the memory; duplicate it to keep it.
  """

  descriptor: int

  def __new__(cls, size: int) -> "SharedMemory":
    """Allocates zeros; `size` is in bytes."""
    descriptor = os.memfd_create("array")
    os.ftruncate(descriptor, size)
    memory = super().__new__(cls, descriptor, size)
    memory.descriptor = descriptor
    return memory

  def __del__(self) -> None:
    os.close(self.descriptor)


class SharedArrays:
  """Arrays of one shape, whose memory is used again.

  The memory of an array is free as soon as neither the array nor a view of it
  exists. It is kept, as new memory costs time: the system clears every page.
  """

  def __init__(self, shape: Sequence[int]):
    """Takes the shape of the arrays, which are uint8."""
    self._shape = tuple(shape)
    self._free: list[SharedMemory] = []

  def take(self) -> np.ndarray:
    """An array with any values; its `base` is its `SharedMemory`."""
    size = max(1, math.prod(self._shape))  # Bytes; memory is never empty.
    memory = self._free.pop() if self._free else SharedMemory(size)
    array = np.ndarray(self._shape, np.uint8, memory)
    weakref.finalize(array, self._free.append, memory).atexit = False
    return array
