"""`--config=FILE.py:ARGUMENTS` and `--config.field=value`."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from vmoe_study.nn.router import ROUTERS

_ROUTER = "--config.model.moe.router="


def add_config(parser: argparse.ArgumentParser) -> None:
  """Adds `--config`; overrides of its fields reach `load` as they are."""
  parser.add_argument(
    "--config",
    required=True,
    metavar="FILE.py[:ARGUMENTS]",
    help="a config file, and arguments for its get_config, such as "
    "configs/digits.py:router=soft,capacity=2; change any field with "
    "--config.FIELD=VALUE",
  )


def load(args: argparse.Namespace) -> dict[str, Any]:
  """`load_file` of the words that `add_config` understood."""
  return load_file(args.config, args.overrides)


def load_file(config: str, overrides: Sequence[str]) -> dict[str, Any]:
  """The config with its overrides, as plain dicts that JSON can hold.

  Args:
    config: "FILE.py" or "FILE.py:ARGUMENTS".
    overrides: "--config.FIELD=VALUE".

  Raises:
    ValueError: if the file, an argument or an override is wrong.
  """
  path = config.partition(":")[0]
  if not Path(path).is_file():
    raise ValueError(
      f"--config={config}: there is no file {path}. Give the path of a "
      "config file; those of this project are in configs/."
    )
  define = config_flags.DEFINE_config_file
  found = _parse(define, [f"--config={config}", *overrides])
  if _change_router(overrides):
    _check_router(_parse(define, [f"--config={config}"]), found)
  return found


def override(
  values: Mapping[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
  """A config, as plain dicts, with some of its fields changed.

  Args:
    values: with every field that may be changed.
    overrides: "--config.FIELD=VALUE".

  Raises:
    ValueError: if an override is wrong.
  """
  config = ConfigDict(with_placeholders(values))
  found = _parse(config_flags.DEFINE_config_dict, overrides, config=config)
  if _change_router(overrides):
    _check_router(values, found)
  return found


def _change_router(overrides: Sequence[str]) -> bool:
  return any(word.startswith(_ROUTER) for word in overrides)


def _check_router(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
  """Refuses a new router that would run with the defaults of the old one."""
  old, new = before["model"]["moe"]["router"], after["model"]["moe"]["router"]
  if old == new or not {old, new} <= ROUTERS.keys():
    return
  defaults, own = (ROUTERS[name].default_options() for name in (old, new))
  options = after["model"]["moe"].get("options", {})
  left = [
    f"{name}={value!r}"
    for name, value in options.items()
    if name in defaults and defaults[name] == value != own.get(name)
  ]
  if left:
    raise ValueError(
      f"{_ROUTER}{new}: the options of {old!r} are still in the config, "
      f"{', '.join(left)} among them. Choose the router by the argument of the "
      f"config file, as in --config=FILE.py:router={new}: it sets options too."
    )


def _parse(
  define: Callable[..., flags.FlagHolder], argv: Sequence[str], **kwargs
) -> dict[str, Any]:
  values = flags.FlagValues()
  words = ["", *argv]
  given = " ".join(argv)
  try:
    holder = define("config", flag_values=values, sys_argv=words, **kwargs)
    values(words)
  except (AttributeError, KeyError) as error:
    reason = " ".join(str(error.args[0]).split())
    raise ValueError(f"{given}: there is no field {reason}.") from error
  except (flags.Error, TypeError) as error:
    # An error inside the file comes with its traceback as text: its last line
    # says what is wrong.
    reason = str(error.args[0]).strip().splitlines()[-1]
    raise ValueError(f"{given}: {reason}") from error
  return holder.value.to_dict()


def with_placeholders(value: Any) -> Any:
  """A field that is None can be overridden by anything."""
  if isinstance(value, Mapping):
    return {key: with_placeholders(item) for key, item in value.items()}
  return placeholder(object) if value is None else value
