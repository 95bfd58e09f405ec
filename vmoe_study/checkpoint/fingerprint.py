"""A 64-bit fingerprint of an array's bits, independent of its sharding.

The bits are read as unsigned words w_0 ... w_{n-1} of at most 32 bits, in
row-major order. For each of two lanes, with salt r,

  fingerprint_r = sum_i mix(w_i XOR mix(i + r))   modulo 2^32.

`mix` is a bijection of 32-bit words (the finalizer of MurmurHash3), so changing
one word always changes the sum, and changes of several words cancel with
probability 2^-32 in each lane. A weighted sum is not enough: with odd weights,
two flipped sign bits add 2^31 * (odd + odd) = 0. The sum is associative, so
each device sums its own shards, and the cost is one read of the array. Small
arrays are read on the host, as a program for each of their shapes would take
longer to compile.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

SMALL = 2**20  # Bytes.
_SALTS = (0x9E3779B9, 0x6A09E667)
_Words = TypeVar("_Words", np.ndarray, jax.Array)


def fingerprint(array: jax.Array | np.ndarray) -> str:
  """The fingerprint of an array as sixteen hexadecimal digits.

  Args:
    array: array of any shape and of a boolean, integer, floating or complex
      dtype; sharded over any number of devices and hosts, or in host memory.
      All processes that hold a part of it call this function.
  """
  on_device = isinstance(array, jax.Array)
  if array.nbytes <= SMALL and (
    not on_device or array.is_fully_addressable or array.is_fully_replicated
  ):
    words = _host_words(np.asarray(array)).astype(np.uint32)
    lanes = _lanes(words, np.arange(words.size, dtype=np.uint32))
  else:
    lanes = _device_lanes(array if on_device else _host_words(array))
  return "".join(f"{int(lane):08x}" for lane in lanes)


def _lanes(words: _Words, index: _Words) -> list[_Words]:
  """The sums over words and their positions, both uint32, of any shape."""
  return [
    _mix(words ^ _mix(index + np.uint32(salt))).sum(dtype=np.uint32)
    for salt in _SALTS
  ]


def _mix(word: _Words) -> _Words:
  word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
  word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
  return word ^ (word >> 16)


def _host_words(array: np.ndarray) -> np.ndarray:
  """The bits as unsigned integers (n,); 8 and 16 bytes become 2 and 4 words."""
  size = min(array.dtype.itemsize, 4)
  return np.ascontiguousarray(array).reshape(-1).view(f"uint{8 * size}")


@jax.jit
def _device_lanes(array: jax.Array) -> list[jax.Array]:
  words = _device_words(array)
  return _lanes(words, _positions(words.shape))


def _device_words(array: jax.Array) -> jax.Array:
  if array.dtype == jnp.bool_:
    return array.astype(jnp.uint32)
  bits = 8 * min(array.dtype.itemsize, 4)
  words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{bits}"))
  return words.astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
  """Row-major index of every element, modulo 2^32, without a reshape."""
  index = jnp.zeros(shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(len(shape))):
    iota = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    index += iota * jnp.uint32(stride % 2**32)
    stride *= shape[axis]
  return index
