"""Arrays in memory that other processes can open."""

import mmap
import os

import numpy as np

from vmoe_study.data.shared_array import SharedArrays, SharedMemory


def test_another_mapping_sees_what_is_written():
  array = SharedArrays((3, 5)).take()
  assert array.shape == (3, 5) and array.dtype == np.uint8
  array[1] = 7
  other = mmap.mmap(array.base.descriptor, 0, prot=mmap.PROT_READ)
  seen = np.ndarray((3, 5), np.uint8, other)
  np.testing.assert_array_equal(seen, array)


def test_an_empty_array_has_memory():
  array = SharedArrays((0, 5)).take()
  assert array.size == 0 and isinstance(array.base, SharedMemory)


def test_memory_is_used_again_when_no_view_is_left():
  arrays = SharedArrays((2, 3))
  array = arrays.take()
  memory, row = array.base, array[1][1:]
  del array
  other = arrays.take()
  assert other.base is not memory
  del row
  assert arrays.take().base is memory


def test_the_file_is_closed_with_the_last_array():
  arrays = SharedArrays((2,))
  array = arrays.take()
  descriptor = array.base.descriptor
  del arrays
  assert os.fstat(descriptor)  # The array holds the memory.
  del array
  assert not os.path.exists(f"/proc/self/fd/{descriptor}")
