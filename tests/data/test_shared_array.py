"""Arrays in memory that other processes can open."""

import gc
import mmap
import os

import numpy as np

from vmoe_study.data.shared_array import ALIGNMENT, SharedMemory, shared_zeros


def test_another_mapping_sees_what_is_written():
  array = shared_zeros((3, 5), np.dtype(np.float32))
  assert array.shape == (3, 5) and not array.any()
  array[1] = 7
  size = os.fstat(array.base.descriptor).st_size
  assert size % ALIGNMENT == 0
  other = mmap.mmap(array.base.descriptor, size, prot=mmap.PROT_READ)
  seen = np.ndarray((3, 5), np.float32, other)
  np.testing.assert_array_equal(seen, array)


def test_an_empty_array_has_memory():
  array = shared_zeros((0, 5), np.dtype(np.uint8))
  assert array.size == 0 and isinstance(array.base, SharedMemory)


def test_the_file_is_closed_with_the_array():
  array = shared_zeros((2,), np.dtype(np.uint8))
  descriptor, row = array.base.descriptor, array[:1]
  del array
  assert os.fstat(descriptor)  # A view holds the memory.
  del row
  gc.collect()
  assert not os.path.exists(f"/proc/self/fd/{descriptor}")
