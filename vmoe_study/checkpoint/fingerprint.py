"""A 64-bit fingerprint of an array's bits, independent of its sharding.

The bits are read as unsigned words w_0 ... w_{n-1} of at most 32 bits, in
row-major order. For each of two lanes, with salt r,

  fingerprint_r = sum_i mix(w_i XOR mix(i + r))   modulo 2^32.

`mix` is a bijection of 32-bit words (the finalizer of MurmurHash3), so changing
one word always changes the sum, and changes of several words cancel with
probability 2^-32 in each lane. A weighted sum is not enough: with odd weights,
two flipped sign bits add 2^31 * (odd + odd) = 0. The sum is associative, so
each device sums its own shards, and the cost is one read of the array.
"""

import jax
import jax.numpy as jnp
import numpy as np

_SALTS = (0x9E3779B9, 0x6A09E667)


def fingerprint(array: jax.Array | np.ndarray) -> tuple[jax.Array, jax.Array]:
  """The two lanes of an array's fingerprint, computed on the array's devices.

  Args:
    array: array of any shape and of a boolean, integer, floating or complex
      dtype; sharded over any number of devices and hosts, or in host memory.

  Returns:
    Two uint32 scalars, replicated; `to_text` makes them a string.
  """
  if isinstance(array, jax.Array):
    return _device_fingerprint(array)
  return _device_fingerprint(_host_words(array))


def to_text(lanes: tuple[jax.Array, jax.Array]) -> str:
  """A fingerprint as sixteen hexadecimal digits."""
  return "".join(f"{int(lane):08x}" for lane in lanes)


def _host_words(array: np.ndarray) -> np.ndarray:
  """The bits as unsigned integers; 8 and 16 bytes become 2 and 4 words."""
  size = min(array.dtype.itemsize, 4)
  return np.ascontiguousarray(array)[..., None].view(f"uint{8 * size}")


def _device_words(array: jax.Array) -> jax.Array:
  if array.dtype == jnp.bool_:
    return array.astype(jnp.uint32)
  bits = 8 * min(array.dtype.itemsize, 4)
  words = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{bits}"))
  return words.astype(jnp.uint32)


def _mix(word: jax.Array) -> jax.Array:
  word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
  word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
  return word ^ (word >> 16)


def _positions(shape: tuple[int, ...]) -> jax.Array:
  """Row-major index of every element, modulo 2^32, without a reshape."""
  index = jnp.zeros(shape, jnp.uint32)
  stride = 1
  for axis in reversed(range(len(shape))):
    iota = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    index += iota * jnp.uint32(stride % 2**32)
    stride *= shape[axis]
  return index


@jax.jit
def _device_fingerprint(array: jax.Array) -> tuple[jax.Array, jax.Array]:
  words = _device_words(array)
  index = _positions(words.shape)
  first, second = (
    jnp.sum(_mix(words ^ _mix(index + jnp.uint32(salt))), dtype=jnp.uint32)
    for salt in _SALTS
  )
  return first, second
