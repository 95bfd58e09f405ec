"""What training carries from step to step."""

from typing import Any

import flax.struct
import jax


@flax.struct.dataclass
class TrainState:
  """Step, parameters and optimizer state: all there is to resume from.

  Attributes:
    step: int32 scalar, updates done so far; negative from a failed step on,
      see `train.step.failed`.
    params: the parameter tree.
    opt_state: of the Optax optimizer.
  """

  step: jax.Array
  params: Any
  opt_state: Any
