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
    seed: uint32 scalar, of all randomness in the steps; not saved, as it is the
      config's. Part of the state, not of the program, so that runs that differ
      in nothing else share a compiled step.
    failed: bool scalar; true once a step was not finite. A failed state is
      frozen, see `training.step`. Not saved, as only sound states are saved.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  failed: jax.Array
  seed: jax.Array
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
    seed: int = 0,
  ) -> "TrainState":
    """A sound state after `step` updates."""
    return cls(
      step=jnp.int32(step),
      params=params,
      opt_state=opt_state,
      failed=jnp.asarray(False),
      seed=jnp.uint32(seed),
      router_state=router_state or {},
      ema=ema or {},
    )
