"""The state that training carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
  """Step, parameters and optimizer state: all there is to resume from.

  Attributes:
    step: int32 scalar, the number of updates so far.
    params: the parameter tree.
    opt_state: state of the Optax optimizer.
    failed: bool scalar; true once a step was not finite. A failed state is
      frozen, see `training.step`. Not saved, as only sound states are saved.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  failed: jax.Array

  @classmethod
  def create(cls, step: int, params: Any, opt_state: Any) -> "TrainState":
    """A sound state after `step` updates."""
    return cls(jnp.int32(step), params, opt_state, jnp.asarray(False))
