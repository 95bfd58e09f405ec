"""What the recipes share: common arguments, and the MoE blocks."""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

from ml_collections import ConfigDict

from vmoe_study.config import parse
from vmoe_study.nn.zoo import ROUTERS
from vmoe_study.run.config_file import with_placeholders


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Arguments of every recipe, `--config=FILE.py:NAME=VALUE,...`.

  Attributes:
    router: a key of `nn.zoo.ROUTERS`, or "dense".
    capacity: capacity factor.
    k: experts per token, under token choice.
    group: images routed together.
    batch_priority: batch priority, under token choice.
    seed: of the run.
  """

  router: str = "softmax_expert_choice"
  capacity: float = 1.0
  k: int = 1
  group: int = 1
  batch_priority: bool = False
  seed: int = 0


A = TypeVar("A", bound=Arguments)


def parse_arguments(text: str, kind: type[A] = Arguments) -> A:
  """Reads "router=soft,capacity=2".

  Args:
    text: the arguments, as on the command line.
    kind: dataclass whose fields are the valid arguments.

  Raises:
    ValueError: for an unknown name or a value of the wrong type.
  """
  fields = {field.name: field for field in dataclasses.fields(kind)}
  values = {}
  for part in filter(None, text.split(",")):
    name, equals, value = part.partition("=")
    if name not in fields or not equals:
      raise ValueError(
        f"config argument {part!r}: must be NAME=VALUE with a name in "
        f"{list(fields)}."
      )
    values[name] = _read(name, value, fields[name].type)
  return kind(**values)


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
  """Raises ValueError unless an argument's value is one of these."""
  if value not in choices:
    raise ValueError(
      f"config argument {name}={value!r}: must be one of {list(choices)}."
    )


def moe(
  args: Arguments,
  *,
  num_experts: int,
  blocks: str,
  shared_expert_init: bool = False,
) -> dict[str, Any]:
  """The `model.moe` of a config.

  Token choice trains with importance and load losses at weight 0.005 each
  (2106.05974), without the load loss if the router has no noise. The other
  routers are balanced without losses.
  """
  options: dict[str, Any] = {}
  if args.router != "dense":
    options = {"num_experts": num_experts, "capacity_factor": args.capacity}
  spec = ROUTERS.get(args.router)
  if spec and "num_selected_experts" in spec.options():  # Token choice.
    options |= {
      "num_selected_experts": args.k,
      "batch_priority": args.batch_priority,
    }
    options["importance_loss_weight"] = 0.005
    if spec.default_options()["noise_std"]:
      options["load_loss_weight"] = 0.005
  elif spec and (args.k != 1 or args.batch_priority):
    raise ValueError(
      f"config arguments k={args.k}, batch_priority={args.batch_priority}: "
      f"only for token choice, and router={args.router!r} is none. Leave them "
      "out."
    )
  return {
    "router": args.router,
    "options": options,
    "blocks": blocks,
    "group_images": args.group,
    "shared_expert_init": shared_expert_init,
  }


def config_dict(**sections) -> ConfigDict:
  """The config with all defaults written out, checked and locked."""
  return ConfigDict(with_placeholders(parse(sections).to_dict())).lock()


def _read(name: str, value: str, kind: type) -> Any:
  try:
    return (
      {"true": True, "false": False}[value.lower()]
      if kind is bool
      else (kind(value))
    )
  except (KeyError, ValueError) as error:
    raise ValueError(
      f"config argument {name}={value!r}: must be of type {kind.__name__}."
    ) from error
