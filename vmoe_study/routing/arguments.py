"""Input validation: casts to float32 and checks ranks."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array


def as_float32(name: str, values: ArrayLike, axes: str = "G S E") -> Array:
  """Casts an argument to float32, in which all routing is computed.

  Args:
    name: the argument's name, for the error message.
    values: array of any real dtype.
    axes: one letter per axis; only their number is checked.

  Raises:
    ValueError: if the number of axes differs.
  """
  array = jnp.asarray(values, jnp.float32)
  letters = axes.split()
  if array.ndim != len(letters):
    raise ValueError(
      f"{name}.shape={array.shape}: must have the axes "
      f"({', '.join(letters)}). Reshape the array."
    )
  return array


def check_positive(name: str, value: int) -> None:
  """Raises ValueError for a count below 1."""
  if value < 1:
    raise ValueError(f"{name}={value}: must be at least 1.")
