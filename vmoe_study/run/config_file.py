"""Config files, `FILE.py:ARGUMENTS`, and overrides, `FIELD=VALUE`.

A config file is a Python file with a function `get_config(arguments)` that
returns an ml_collections `ConfigDict`. This module converts it to a `Config`.
"""

import contextlib
import importlib.util
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder
from ml_collections.config_flags import config_path

from vmoe_study.config import Config, parse
from vmoe_study.nn.moe import DENSE
from vmoe_study.nn.zoo import ROUTERS
from vmoe_study.options import check_keys, check_names

PACKAGE = Path(__file__).resolve().parents[1]
_BUNDLED = PACKAGE / "_bundled"
# The folder of `configs/`: the installed package or, if the package is imported
# from a clone, the clone.
HOME = _BUNDLED if _BUNDLED.is_dir() else PACKAGE.parent
FLAG = "--config."
_ROUTER = "model.moe.router="
# How error messages describe the types of fields.
_TYPES = {ConfigDict: "a dict, like {'a': 1}", tuple: "a tuple, like (1, 5)"}


def load_config(config: str, overrides: Sequence[str] = ()) -> Config:
  """Reads a config file.

  Args:
    config: "FILE.py" or "FILE.py:ARGUMENTS". A path that begins with `configs/`
      and does not exist here is one of this project's own config files.
    overrides: changes of fields, "FIELD=VALUE", as in "train.num_epochs=2.0".

  Raises:
    ValueError: the file, an argument or an override is wrong. An `OptionsError`
      lists all problems of the fields.

  >>> config = load_config("configs/digits.py:router=soft", ["seed=1"])
  >>> config.model.moe.router, config.seed
  ('soft', 1)
  """
  return parse(load_values(config, overrides))


def load_values(config: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
  """Like `load_config`, but returns nested dicts with unchecked fields."""
  return _override(_get_config(config), overrides)


def override_config(config: Config, overrides: Sequence[str]) -> Config:
  """Returns the config with some fields changed.

  Args:
    config: config of a run.
    overrides: changes of fields, "FIELD=VALUE".

  Raises:
    ValueError: an override, or the resulting config, is wrong.
  """
  if not overrides:
    return config
  values = ConfigDict(with_placeholders(config.to_dict()))
  return parse(_override(values, overrides))


def _get_config(config: str) -> ConfigDict:
  """Calls `get_config` of the file with the arguments."""
  path, *arguments = config.split(":", 1)
  file = find_file(path)
  if file is None:
    raise ValueError(
      f"--config={config}: there is no file {path}. Give the path of a config "
      "file; those of this project are in configs/."
    )
  try:
    found = load_module(file).get_config(*arguments)
    if not isinstance(found, ConfigDict):
      raise ValueError(
        f"get_config returned {type(found).__name__}: must be a ConfigDict of "
        "ml_collections. Return ConfigDict({...})."
      )
    _check_keys("config", found)
    return found
  except (ValueError, OSError) as error:
    raise ValueError(f"--config={config}: {error}") from error
  except Exception as error:  # The file may do anything.
    kind = type(error).__name__
    raise ValueError(f"--config={config}: {kind}: {error}") from error


def _check_keys(where: str, values: ConfigDict) -> None:
  """Raises OptionsError for names that are not strings, at any depth."""
  try:
    names = list(values)  # Sorted, which several types may not be.
  except TypeError:
    raise ValueError(
      f"{where}: has names that are not strings. Write all names in quotes."
    ) from None
  check_keys(where, names)
  for name in names:
    if isinstance(values[name], ConfigDict):
      _check_keys(f"{where}.{name}", values[name])


def find_file(path: str) -> str | None:
  """The path of a config file, which may be one of this project's own."""
  path = str(Path(path).expanduser())
  if Path(path).is_file():
    return path
  ours = HOME / path
  if Path(path).parts[:1] == ("configs",) and ours.is_file():
    return str(ours)
  return None


def load_module(file: str) -> types.ModuleType:
  """Imports a Python file as a module.

  The file may import the files next to it as `FOLDER.NAME`, and this project's
  config files as `configs.NAME`, even if another package `configs` is
  installed.
  """
  name = f"_file_{Path(file).stem}"
  loader = SourceFileLoader(name, file)
  spec = importlib.util.spec_from_file_location(name, file, loader=loader)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # Dataclasses look themselves up there.
  with _importable(Path(file).resolve().parent):
    loader.exec_module(module)
  return module


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
  """Makes `folder` importable by its name, and this project's `configs`.

  A different package `configs` that was imported before is restored afterwards.
  """
  if folder.name == "configs":
    configs, roots = folder, [str(folder.parent)]
  else:
    configs, roots = HOME / "configs", [str(folder.parent), str(HOME)]
  others = {} if _is_imported_from(configs) else _pop_configs()
  sys.path[:0] = roots
  try:
    yield
  finally:
    for root in roots:
      sys.path.remove(root)
    if others:
      _pop_configs()
      sys.modules.update(others)


def _is_imported_from(configs: Path) -> bool:
  folders = getattr(sys.modules.get("configs"), "__path__", ())
  return configs in [Path(folder).resolve() for folder in folders]


def _pop_configs() -> dict[str, types.ModuleType]:
  """Removes the package `configs` from the imported modules; returns it."""
  names = [name for name in sys.modules if name.split(".")[0] == "configs"]
  return {name: sys.modules.pop(name) for name in names}


def _override(config: ConfigDict, overrides: Sequence[str]) -> dict[str, Any]:
  before = config.to_dict()
  for word in overrides:
    _check_field(config, word.partition("=")[0])
  found = _parse(config, [f"{FLAG}{word}" for word in overrides])
  if any(word.startswith(_ROUTER) for word in overrides):
    _check_router(before, found)
  return found


def _check_field(config: ConfigDict, path: str) -> None:
  """Raises ValueError for an unknown field; the message lists the fields."""
  if "[" in path:
    field = path.partition("[")[0]
    raise ValueError(
      f"{FLAG}{path}: a part of a value cannot be changed alone. Give the "
      f"whole value, {FLAG}{field}=VALUE; nested fields have dots, as in "
      f"{FLAG}train.batch_size=64."
    )
  node, where = config, "config"
  for name in path.split("."):
    check_names(where, [name], node if isinstance(node, ConfigDict) else ())
    node, where = node[name], f"{where}.{name}"


def _check_router(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
  """Refuses a new router that would run with the options of the old one."""
  old, new = before["model"]["moe"]["router"], after["model"]["moe"]["router"]
  if old == new or not {old, new} <= {*ROUTERS, DENSE}:
    return
  defaults, own = (
    ROUTERS[name].default_options() if name in ROUTERS else {}
    for name in (old, new)
  )
  options = after["model"]["moe"].get("options", {})
  left = [
    f"{name}={value!r}"
    for name, value in options.items()
    if name in defaults and defaults[name] == value != own.get(name)
  ]
  if left:
    raise ValueError(
      f"{FLAG}{_ROUTER}{new}: the options of {old!r} are still in the config, "
      f"{', '.join(left)} among them. Choose the router by the argument of the "
      f"config file, as in --config=FILE.py:router={new}: it sets options too."
    )


def _parse(config: ConfigDict, overrides: Sequence[str]) -> dict[str, Any]:
  values = flags.FlagValues()
  words = ["", *overrides]
  try:
    holder = config_flags.DEFINE_config_dict(
      "config", config, flag_values=values, sys_argv=words
    )
    values(words)
  except flags.IllegalFlagValueError as error:
    raise ValueError(_illegal(config, str(error), overrides)) from error
  except (flags.Error, AttributeError, KeyError, TypeError) as error:
    reason = " ".join(str(error.args[0]).split())
    raise ValueError(f"{' '.join(overrides)}: {reason}") from error
  return holder.value.to_dict()


def _illegal(config: ConfigDict, reason: str, overrides: Sequence[str]) -> str:
  """A message that names the value and the type that it must have."""
  flag = re.match("flag (--[^=]*)", reason)[1]
  given = " ".join(word for word in overrides if word.startswith(f"{flag}="))
  kind = config_path.get_type(flag.removeprefix(FLAG), config)
  return f"{given}: must be {_TYPES.get(kind, kind.__name__)}."


def with_placeholders(value: Any) -> Any:
  """Replaces None by placeholders, which a value of any type can override."""
  if isinstance(value, Mapping):
    return {key: with_placeholders(item) for key, item in value.items()}
  return placeholder(object) if value is None else value
