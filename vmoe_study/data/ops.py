"""Image operations by name: "inception_crop(224)|flip_lr|value_range(-1, 1)".

Operations on uint8 images run on the host, one image at a time. `value_range`
comes last. It is applied to whole batches on the devices (`device_ops`), as
bytes are four times smaller than floats on the way.
"""

import ast
import dataclasses
import inspect
from collections.abc import Callable
from typing import Any


from vmoe_study.data import augment
from vmoe_study.data.augment import Image, Rng
from vmoe_study.data.randaugment import randaug
from vmoe_study.options import did_you_mean

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


@dataclasses.dataclass(frozen=True)
class Op:
  """An operation with its arguments."""

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
    value_range: range of the float32 images that the model gets.
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
    name, args = _name_and_args(ast.parse(text, mode="eval").body)
  except (SyntaxError, ValueError) as error:
    raise ValueError(
      f"ops={ops!r}: {text!r} must have the form name or name(1, 2.5). "
      "Separate operations by |."
    ) from error
  if name not in OPS:
    raise ValueError(
      f"ops={ops!r}: unknown operation {name!r}.{did_you_mean(name, OPS)} "
      f"Valid names: {', '.join(sorted(OPS))}."
    )
  signature = inspect.signature(OPS[name])
  is_random = "rng" in signature.parameters
  try:
    signature.bind(None, *args, **({"rng": None} if is_random else {}))
  except TypeError as error:
    raise ValueError(
      f"ops={ops!r}: {text!r}: {error}. Its form is {_form(name, signature)}."
    ) from error
  return Op(name, tuple(args), is_random)


def _name_and_args(node: ast.expr) -> tuple[str, list[Any]]:
  match node:
    case ast.Name(name):
      return name, []
    case ast.Call(ast.Name(name), args, []):
      return name, [ast.literal_eval(arg) for arg in args]
  raise ValueError("neither a name nor a call with positional arguments")


def _form(name: str, signature: inspect.Signature) -> str:
  """As a user writes it: "inception_crop(size, min_area=0.05)"."""
  _, *parameters = signature.parameters.values()
  shown = [
    parameter.replace(annotation=inspect.Parameter.empty)
    for parameter in parameters
    if parameter.name != "rng"
  ]
  return name + (f"({', '.join(map(str, shown))})" if shown else "")
