"""What the public functions of routing accept, and as what they read it."""

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array


def float32(name: str, values: ArrayLike, axes: str = "G S E") -> Array:
  """The values in float32, in which all routing is computed.

  Raises:
    ValueError: if they do not have these axes.
  """
  array = jnp.asarray(values, jnp.float32)
  if array.ndim != len(axes.split()):
    raise ValueError(
      f"{name} of shape {array.shape}: must have the axes {axes}. Reshape it."
    )
  return array


def check_positive(name: str, value: int) -> None:
  """Raises ValueError for a count below 1."""
  if value < 1:
    raise ValueError(f"{name}={value}: must be at least 1.")
