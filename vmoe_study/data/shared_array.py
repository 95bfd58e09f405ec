"""Arrays in anonymous memory that other processes can open (`memfd_create`)."""

import math
import mmap
import os
from collections.abc import Sequence

import numpy as np

ALIGNMENT = 64  # Bytes.


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


def shared_zeros(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
  """Like `np.zeros`; the array's `base` is its `SharedMemory`."""
  size = math.prod(shape) * dtype.itemsize
  padded = size + ALIGNMENT - size % ALIGNMENT  # Never empty.
  return np.ndarray(tuple(shape), dtype, SharedMemory(padded))
