"""Optimizers of Optax by name, such as "lion", with their own arguments.

The optimizers in `NAMES` need only the gradient, and by default they do not
decay weights themselves: that is done by `OptimizerSpec.weight_decay`.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vmoe_study.options import check_names, check_type

NAMES = (
  "adabelief",
  "adadelta",
  "adafactor",
  "adagrad",
  "adamax",
  "adan",
  "amsgrad",
  "lamb",
  "lars",
  "lion",
  "novograd",
  "radam",
  "rmsprop",
  "sign_sgd",
  "yogi",
)
# Arguments of functions of Optax that are set here.
_DECAY = "weight_decay", "weight_decay_rate"
_OTHERS = "learning_rate", "mask", "weight_decay_mask", "trust_ratio_mask"


def default_arguments(name: str) -> dict[str, Any]:
  """The arguments of an optimizer with their defaults; dtypes by name.

  >>> default_arguments("yogi")
  {'b1': 0.9, 'b2': 0.999, 'eps': 0.001}
  """
  return {
    argument: value.dtype.name if hasattr(value, "dtype") else value
    for argument, value in _defaults(name).items()
    if argument not in (*_DECAY, *_OTHERS)
  }


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
  """Checks names and types, and that Optax accepts the values.

  Raises:
    ValueError: an argument is wrong; the message names it.
  """
  defaults = default_arguments(name)
  check_names("arguments", arguments, defaults)
  for argument, value in arguments.items():
    hint = type(defaults[argument])
    if defaults[argument] is not None and value is not None:
      check_type(f"arguments.{argument}", value, hint)
  try:
    jax.eval_shape(lambda: _try_one_step(name, arguments))
  except Exception as error:  # Optax checks little; JAX finds what is left.
    raise ValueError(
      f"arguments={dict(arguments)!r}: optax.{name} does not accept them: "
      f"{error}. Correct them, or leave them out."
    ) from error


def make(
  name: str, arguments: Mapping[str, Any], schedule: optax.Schedule
) -> optax.GradientTransformation:
  """Makes the optimizer of Optax, without weight decay.

  Args:
    name: one of `NAMES`.
    arguments: arguments of Optax's function.
    schedule: learning rate as a function of the step.
  """
  none = {argument: 0.0 for argument in _DECAY if _defaults(name).get(argument)}
  return getattr(optax, name)(schedule, **none, **arguments)


def _defaults(name: str) -> dict[str, Any]:
  parameters = inspect.signature(getattr(optax, name)).parameters.values()
  return {parameter.name: parameter.default for parameter in parameters}


def _try_one_step(name: str, arguments: Mapping[str, Any]) -> Any:
  params = {"kernel": jnp.ones((2, 2))}
  optimizer = make(name, arguments, lambda step: 1.0)
  return optimizer.update(params, optimizer.init(params), params)
