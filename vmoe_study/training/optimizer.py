"""Optimizers and learning-rate schedules."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from vmoe_study.options import check_least, check_names
from vmoe_study.parallel.sharding import path_name
from vmoe_study.training import optax_names

OWN = "adam", "sgd"  # Optimizers with fields of `OptimizerSpec`.
OWN_FIELDS = "beta1", "beta2", "epsilon", "momentum", "moment_dtype"


@dataclasses.dataclass(frozen=True)
class ScheduleSpec:
  """Learning rate by step: warm-up from 0, decay, cool-down to 0.

  Attributes:
    name: the decay: "constant"; "linear" or "cosine", which reach `end` at the
      last step; or "rsqrt": peak * sqrt(timescale / (timescale + steps since
      warm-up)).
    peak: learning rate at the end of the warm-up.
    end: learning rate at the last step of "linear" and "cosine".
    warmup_steps: steps of the linear warm-up from 0.
    timescale: time scale of "rsqrt", in steps.
    cooldown_steps: steps of a linear decrease to 0 at the end of training.
    cooldown: what the decay does during the cool-down: it stops ("freeze", as
      in the code that trained Soft MoE) or continues ("multiply", as in
      big_vision).

  Raises:
    ValueError: for a number out of range.
  """

  name: Literal["constant", "linear", "cosine", "rsqrt"] = "cosine"
  peak: float = 1e-3
  end: float = 0.0
  warmup_steps: int = 0
  timescale: int = 10_000
  cooldown_steps: int = 0
  cooldown: Literal["freeze", "multiply"] = "freeze"

  def __post_init__(self):
    for field in ("peak", "end", "warmup_steps", "cooldown_steps"):
      check_least(field, getattr(self, field), 0)
    check_least("timescale", self.timescale, 1)


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
  """An optimizer with decoupled weight decay and gradient clipping.

  Attributes:
    name: "adam", "sgd", or one of Optax's in `optax_names.NAMES`, such as
      "adafactor" or "lion".
    arguments: arguments of Optax's function of this name, except learning rate
      and weight decay. "adam" and "sgd" use the fields below instead.
    beta1: decay of Adam's first moment.
    beta2: decay of Adam's second moment.
    epsilon: added to Adam's denominator.
    momentum: momentum of SGD; 0 for none.
    moment_dtype: dtype of Adam's first moment, or of SGD's momentum.
    weight_decay: pairs of a regular expression for parameter paths and a rate.
      The first pair that matches applies: each step subtracts learning rate *
      rate * parameter. Parameters without a match do not decay.
    clip_norm: largest global norm of the gradient; 0 for no clipping.

  Raises:
    ValueError: for an unknown name or argument, a number out of range, or a bad
      regular expression.
  """

  name: str = "adam"
  arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  beta1: float = 0.9
  beta2: float = 0.999
  epsilon: float = 1e-8
  momentum: float = 0.9
  moment_dtype: Literal["float32", "bfloat16"] = "float32"
  weight_decay: tuple[tuple[str, float], ...] = ()
  clip_norm: float = 0.0

  def __post_init__(self):
    check_names("name", [self.name], [*OWN, *optax_names.NAMES])
    if self.name in OWN:
      check_names("arguments", self.arguments, ())
    else:
      self._check_fields()
      optax_names.check_arguments(self.name, self.arguments)
    for field in ("beta1", "beta2", "momentum"):
      if not 0 <= getattr(self, field) < 1:
        raise ValueError(f"{field}={getattr(self, field)}: must be in [0, 1).")
    for field in ("epsilon", "clip_norm"):
      check_least(field, getattr(self, field), 0)
    for pattern, rate in self.weight_decay:
      try:
        re.compile(pattern)
      except re.error as error:
        raise ValueError(
          f"weight_decay pattern {pattern!r}: must be a regular expression "
          f"({error}). Correct it."
        ) from error
      check_least(f"weight_decay rate of {pattern!r}", rate, 0)

  def _check_fields(self) -> None:
    """Raises ValueError for a field that this optimizer does not use."""
    for field in OWN_FIELDS:
      if (value := getattr(self, field)) != getattr(OptimizerSpec, field):
        raise ValueError(
          f"{field}={value!r}: is for {' and '.join(OWN)} only. Set arguments "
          f"for optax.{self.name} instead: "
          f"{', '.join(optax_names.default_arguments(self.name))}."
        )


def check_schedule(spec: ScheduleSpec, num_steps: int) -> None:
  """Raises ValueError if warm-up and cool-down do not fit into the run."""
  edges = {
    f"train.schedule.{name}": getattr(spec, name)
    for name in ("warmup_steps", "cooldown_steps")
  }
  if sum(edges.values()) > num_steps:
    given = " and ".join(f"{name}={steps}" for name, steps in edges.items())
    shorter = " ".join(
      f"--config.{name}={num_steps // 10}"
      for name, steps in edges.items()
      if steps
    )
    raise ValueError(
      f"{given}: must fit into {num_steps} steps. Shorten them, as with "
      f"{shorter}, or train longer."
    )


def make_schedule(spec: ScheduleSpec, num_steps: int) -> optax.Schedule:
  """The learning rate as a function of the step, float32.

  After the last step a cool-down continues below 0, but no step uses these
  values.

  Args:
    spec: the schedule.
    num_steps: updates of the whole run.

  Raises:
    ValueError: if warm-up and cool-down do not fit into the run.
  """
  check_schedule(spec, num_steps)
  decay_steps = max(num_steps - spec.warmup_steps, 1)
  freezes = spec.cooldown_steps and spec.cooldown == "freeze"
  last_decay = num_steps - spec.cooldown_steps if freezes else math.inf

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    decaying = jnp.minimum(step, last_decay)
    since_warmup = jnp.maximum(decaying - spec.warmup_steps, 0.0)
    progress = jnp.minimum(since_warmup / decay_steps, 1.0)
    decay = {
      "constant": 1.0,
      "linear": 1.0 - progress,
      "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
      "rsqrt": jnp.sqrt(spec.timescale / (spec.timescale + since_warmup)),
    }[spec.name]
    floor = spec.end if spec.name in ("linear", "cosine") else 0.0
    rate = floor + (spec.peak - floor) * decay
    warmup = jnp.minimum(step / max(spec.warmup_steps, 1), 1.0)
    warmup = warmup if spec.warmup_steps else 1.0
    remaining = (num_steps - step) / max(spec.cooldown_steps, 1)
    cooldown = jnp.minimum(remaining, 1.0) if spec.cooldown_steps else 1.0
    return rate * warmup * cooldown

  return schedule


def make_optimizer(
  spec: OptimizerSpec, schedule: optax.Schedule, params: Any
) -> optax.GradientTransformation:
  """The optimizer for a tree of parameters.

  Args:
    spec: the optimizer.
    schedule: learning rate as a function of the step.
    params: the parameters or their shapes; weight decay depends on their paths.

  Raises:
    ValueError: if a weight-decay pattern matches no parameter.
  """
  parts = [optax.clip_by_global_norm(spec.clip_norm)] if spec.clip_norm else []
  if spec.name in optax_names.NAMES:
    parts.append(optax_names.make(spec.name, spec.arguments, schedule))
    if spec.weight_decay:
      parts.append(_decay_weights(spec.weight_decay, params, schedule))
    return optax.chain(*parts)
  if spec.name == "adam":
    parts.append(
      optax.scale_by_adam(
        spec.beta1, spec.beta2, spec.epsilon, mu_dtype=spec.moment_dtype
      )
    )
  elif spec.momentum:
    parts.append(
      optax.trace(spec.momentum, accumulator_dtype=spec.moment_dtype)
    )
  if spec.weight_decay:
    parts.append(_add_decayed_weights(spec.weight_decay, params))
  return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def _add_decayed_weights(rules, params) -> optax.GradientTransformation:
  """Adds rate * parameter before the update is scaled by the learning rate."""
  rates = _decay_rates(rules, params)

  def update(updates, state, params):
    decay = lambda u, p, r: u + r * p if r else u  # noqa: E731
    return jax.tree.map(decay, updates, params, rates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _decay_weights(rules, params, schedule) -> optax.GradientTransformation:
  """Subtracts learning rate * rate * parameter from finished updates."""
  rates = _decay_rates(rules, params)

  def update(updates, state, params):
    learning_rate = schedule(state.count)
    decay = lambda u, p, r: u - learning_rate * r * p if r else u  # noqa: E731
    updates = jax.tree.map(decay, updates, params, rates)
    return updates, optax.ScaleByScheduleState(state.count + 1)

  return optax.GradientTransformation(
    lambda _: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update
  )


def _decay_rates(rules, params) -> Any:
  """The rate of every parameter, by the first rule that matches its path."""
  used = set()

  def rate(path, _):
    name = path_name(path)
    for index, (pattern, value) in enumerate(rules):
      if re.search(pattern, name):
        used.add(index)
        return value
    return 0.0

  rates = jax.tree_util.tree_map_with_path(rate, params)
  for index in sorted(set(range(len(rules))) - used):
    raise ValueError(
      f"weight_decay pattern {rules[index][0]!r}: must match a parameter that "
      "earlier patterns do not match. Correct or remove it."
    )
  return rates
