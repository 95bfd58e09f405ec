"""Image operations by name: "inception_crop(224)|flip_lr|value_range(-1, 1)".

Arguments may be named: 'randaug(2, 10, variant="authors")'. Operations on uint8
images run on the host, one image at a time. `value_range` comes last.
`value_range` is applied to whole batches on the devices (`device_ops`), because
bytes to transfer are four times smaller than floats.
"""

import ast
import dataclasses
import inspect
import typing
from collections.abc import Callable
from typing import Any

from vmoe_study.data import augment
from vmoe_study.data.augment import Image, Rng
from vmoe_study.data.randaugment import randaug
from vmoe_study.files.json_text import MALFORMED
from vmoe_study.options import check_type, did_you_mean

OPS: dict[str, Callable[..., Any]] = {
  op.__name__: op
  for op in (
    augment.resize,
    augment.resize_small,
    augment.central_crop,
    augment.inception_crop,
    augment.pad_crop,
    augment.flip_lr,
    randaug,
    augment.rgb,
    augment.value_range,
  )
}
# Lowest and highest value of arguments, by name.
LIMITS = {
  "size": (1, 10_000),
  "pad": (0, 10_000),
  "min_area": (0, 1),
  "num_layers": (0, 100),
  "magnitude": (0, 100),
  "low": (-1e6, 1e6),
  "high": (-1e6, 1e6),
}


@dataclasses.dataclass(frozen=True)
class Op:
  """An operation with all of its arguments, in order."""

  name: str
  args: tuple[Any, ...]
  is_random: bool

  def __call__(self, image: Image, rng: Rng | None) -> Image:
    if self.is_random:
      return OPS[self.name](image, *self.args, rng=rng)
    return OPS[self.name](image, *self.args)


@dataclasses.dataclass(frozen=True)
class Ops:
  """A parsed chain of operations.

  Attributes:
    steps: operations on one image, in order.
    value_range: value range of the float32 input images of the model.
  """

  steps: tuple[Op, ...]
  value_range: tuple[float, float] = (0.0, 255.0)

  @property
  def is_random(self) -> bool:
    """Whether any operation draws random numbers."""
    return any(step.is_random for step in self.steps)

  def __call__(self, image: Image, rng: Rng | None = None) -> Image:
    """Applies every step to a uint8 (H, W, C) image.

    Raises:
      ImageError: the image is too small for an operation.
    """
    for step in self.steps:
      image = step(image, rng)
    return image


def parse_ops(text: str) -> Ops:
  """Parses "name|name(1, 2)|..." into a chain of operations.

  Raises:
    ValueError: bad syntax, an unknown name, wrong arguments, or a value_range
      that is not last.
  """
  *steps, last = [_parse_op(text, part.strip()) for part in text.split("|")]
  if any(step.name == "value_range" for step in steps):
    raise ValueError(
      f"ops={text!r}: value_range must come last. Move it to the end."
    )
  if last.name == "value_range":
    return Ops(tuple(steps), last.args)
  return Ops((*steps, last))


def _parse_op(ops: str, text: str) -> Op:
  try:
    name, args, named = _call(ast.parse(text, mode="eval").body)
  except (SyntaxError, MemoryError, *MALFORMED) as error:
    raise ValueError(
      f"ops={ops!r}: {text!r} must have the form name or name(1, 2.5). "
      "Separate operations by |."
    ) from error
  if name not in OPS:
    raise ValueError(
      f"ops={ops!r}: unknown operation {name!r}.{did_you_mean(name, OPS)} "
      f"Valid names: {', '.join(sorted(OPS))}."
    )
  op, hints = inspect.signature(OPS[name]), typing.get_type_hints(OPS[name])
  _, *parameters = op.parameters.values()
  form = op.replace(parameters=[p for p in parameters if p.name != "rng"])
  try:
    bound = form.bind(*args, **named)
    for argument, value in bound.arguments.items():
      check_type(argument, value, hints[argument])
      _check_limits(argument, value)
    if name == "value_range" and bound.args[0] >= bound.args[1]:
      raise ValueError("low must be less than high")
  except (TypeError, ValueError) as error:
    reason = str(error).rstrip(".")
    raise ValueError(
      f"ops={ops!r}: {text!r}: {reason}. Its form is {_form(name, form)}."
    ) from error
  bound.apply_defaults()
  return Op(name, bound.args, "rng" in op.parameters)


def _check_limits(argument: str, value: Any) -> None:
  """Raises ValueError for a number outside of `LIMITS`."""
  low, high = LIMITS.get(argument, (None, None))
  if low is not None and not low <= value <= high:
    raise ValueError(f"{argument}={value!r}: must be from {low} to {high}")


def _call(node: ast.expr) -> tuple[str, list[Any], dict[str, Any]]:
  """Returns name, positional arguments and named arguments."""
  match node:
    case ast.Name(name):
      return name, [], {}
    case ast.Call(ast.Name(name), args, keywords):
      named = {str(k.arg): ast.literal_eval(k.value) for k in keywords}
      if len(named) < len(keywords):
        raise ValueError("an argument is given twice")
      return name, [ast.literal_eval(arg) for arg in args], named
  raise ValueError("neither a name nor a call")


def _form(name: str, form: inspect.Signature) -> str:
  """Formats an operation: "inception_crop(size, min_area=0.05)"."""
  shown = [
    parameter.replace(annotation=inspect.Parameter.empty)
    for parameter in form.parameters.values()
  ]
  return name + (f"({', '.join(map(str, shown))})" if shown else "")
