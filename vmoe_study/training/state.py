"""The state that training carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
  """Step, parameters and states: all there is to resume from.

  Attributes:
    step: int32 scalar, the number of updates so far.
    params: the parameter tree.
    opt_state: state of the Optax optimizer.
    router_state: states of routers, which steps update without a gradient; {}
      if no router has one.
    ema: the exponential moving average of the parameters; {} if the run keeps
      none.
    failed: bool scalar; true once a step was not finite. A failed state is
      frozen, see `training.step`. Not saved, as only sound states are saved.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  failed: jax.Array
  router_state: Any = flax.struct.field(default_factory=dict)
  ema: Any = flax.struct.field(default_factory=dict)

  @property
  def variables(self) -> dict[str, Any]:
    """What the model is evaluated with: parameters and states of routers.

    The parameters are their moving average, if there is one.
    """
    return {
      "params": self.ema or self.params,
      "router_state": self.router_state,
    }

  @classmethod
  def create(
    cls,
    step: int,
    params: Any,
    opt_state: Any,
    router_state: Any = None,
    ema: Any = None,
  ) -> "TrainState":
    """A sound state after `step` updates."""
    failed = jnp.asarray(False)
    return cls(
      jnp.int32(step), params, opt_state, failed, router_state or {}, ema or {}
    )
