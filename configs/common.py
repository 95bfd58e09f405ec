"""Shared by all recipes: common arguments, and the MoE blocks."""

import dataclasses
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from vmoe_study.config import parse
from vmoe_study.nn.zoo import ROUTERS, RouterSpec
from vmoe_study.run.config_file import with_placeholders

# Token choice that trains with importance and load losses at weight 0.005 each
# (softmax: 2106.05974). Other routers are balanced in another way or not at
# all: Sinkhorn token choice has no such loss in the public V-MoE code.
BALANCED_BY_LOSSES = (
  "softmax_token_choice",
  "column_sparse_token_choice",
  "dropless_token_choice",
  "selected_softmax_token_choice",
  "sigmoid_token_choice",
  "cosine_token_choice",
)


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Arguments of every recipe, `--config=FILE.py:NAME=VALUE,...`.

  Attributes:
    router: a key of `nn.zoo.ROUTERS`, or "dense".
    capacity: capacity factor.
    k: experts per token, under token choice; 0 for the router's default.
    group: number of images routed together.
    batch_priority: whether token choice uses batch priority.
    balance: weight of the importance loss and of the load loss, under token
      choice; by default 0.005 for `BALANCED_BY_LOSSES`, 0 for other routers.
    seed: seed of the run.
  """

  router: str = "softmax_expert_choice"
  capacity: float = 1.0
  k: int = 0
  group: int = 1
  batch_priority: bool = False
  balance: float | None = None
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
  """Raises ValueError unless an argument's value is one of the choices."""
  if value not in choices:
    raise ValueError(
      f"config argument {name}={value!r}: must be one of {list(choices)}."
    )


def tokens_choose(router: str) -> bool:
  """Whether a router has K experts per token, set by the argument `k`."""
  spec = ROUTERS.get(router)
  return spec is not None and "num_selected_experts" in spec.options()


def moe(
  args: Arguments,
  *,
  num_experts: int,
  blocks: str,
  capacity: Mapping[str, Any] | None = None,
  **others: Any,
) -> dict[str, Any]:
  """Makes the section `model.moe` of a config.

  There is no load loss if the router has no noise.

  Args:
    args: arguments of the config.
    num_experts: E.
    blocks: which blocks are routed.
    capacity: options of the router that set its capacity; by default the
      capacity factor of the arguments. Routers without such options take none.
    **others: further fields of `MoeOptions`.
  """
  made: dict[str, Any] = {}
  if spec := ROUTERS.get(args.router):
    capacity = capacity or {"capacity_factor": args.capacity}
    known = capacity.keys() & spec.options().keys()
    made = {"num_experts": num_experts} | {n: capacity[n] for n in known}
    if tokens_choose(args.router):
      made |= _token_choice(args, spec)
    elif args.k > 1 or args.batch_priority or args.balance:
      raise ValueError(
        f"config arguments k={args.k}, batch_priority={args.batch_priority}, "
        f"balance={args.balance}: only for token choice, but "
        f"router={args.router!r} is not. Leave them out."
      )
  return {
    "router": args.router,
    "options": made,
    "blocks": blocks,
    "group_images": args.group,
    **others,
  }


def _token_choice(args: Arguments, spec: RouterSpec) -> dict[str, Any]:
  """Options of token choice: K, batch priority and losses."""
  made: dict[str, Any] = {}
  if args.batch_priority:
    made["batch_priority"] = True
  if args.k:
    made["num_selected_experts"] = args.k
  balance = args.balance
  if balance is None and args.router in BALANCED_BY_LOSSES:
    balance = 0.005
  if balance:
    made["importance_loss_weight"] = balance
    if spec.default_options()["noise_std"]:
      made["load_loss_weight"] = balance
  return made


def config_dict(**sections) -> ConfigDict:
  """The config with all defaults written out, checked and locked."""
  return ConfigDict(with_placeholders(parse(sections).to_dict())).lock()


def _read(name: str, value: str, kind: Any) -> Any:
  kind = (typing.get_args(kind) or (kind,))[0]  # `float | None` reads a float.
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
