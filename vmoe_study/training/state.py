"""The state that training carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
  """Step, parameters and states: everything that a run resumes from.

  Attributes:
    step: int32 scalar, the number of updates so far.
    params: the parameter tree.
    opt_state: state of the optimizer.
    router_state: states of routers, which training steps update without
      gradients; {} if no router has one.
    ema: the exponential moving average of the parameters; {} if the run keeps
      none.
    seed: uint32 scalar, the seed of all randomness in the steps. Not saved,
      because the config holds it. It is part of the state instead of the
      program, so that runs that differ only in the seed share a compiled step.
    failed: bool scalar; true once a step was not finite. A failed state is
      frozen, see `training.step`. Not saved, because only states that have not
      failed are saved.
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
    """The variables for evaluation: parameters and router states.

    The parameters are the moving average, if there is one.
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
    """A state after `step` updates that has not failed."""
    return cls(
      step=jnp.int32(step),
      params=params,
      opt_state=opt_state,
      failed=jnp.asarray(False),
      seed=jnp.uint32(seed),
      router_state=router_state or {},
      ema=ema or {},
    )
