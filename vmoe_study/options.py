"""Checks on what a user wrote: names and types, before anything runs."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from beartype import BeartypeConf
from beartype.door import is_bearable

_NUMBERS = BeartypeConf(is_pep484_tower=True)  # An int will do for a float.


def check_names(where: str, given: Iterable[str], valid: Iterable[str]) -> None:
  """Raises ValueError for a name in `given` that is not in `valid`."""
  valid = sorted(valid)
  for name in sorted(set(given) - set(valid)):
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(
      f"{where}: unknown name {name!r}.{hint} Valid names: {', '.join(valid)}."
    )


def check_type(where: str, value: Any, hint: Any) -> None:
  """Raises ValueError unless `value` has the type `hint`.

  An int passes for a float, a bool passes for nothing but a bool, and numbers
  must be finite.
  """
  options = typing.get_args(hint) or (hint,)
  if typing.get_origin(hint) is typing.Literal:
    accepted, described = value in options, " or ".join(map(repr, options))
  else:
    accepted = is_bearable(value, hint, conf=_NUMBERS)
    accepted &= not (isinstance(value, bool) and bool not in options)
    described = hint.__name__ if isinstance(hint, type) else str(hint)
  if not accepted:
    raise ValueError(
      f"{where}={value!r} ({type(value).__name__}): must be {described}."
    )
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{where}={value!r}: must be a finite number.")


def check_least(where: str, value: float, least: float) -> None:
  """Raises ValueError for a value below the least allowed."""
  if value < least:
    raise ValueError(f"{where}={value!r}: must be at least {least}.")


def build(cls: type, where: str, values: Any) -> Any:
  """Makes a dataclass from a mapping, checking every name, type and value.

  Fields that are dataclasses, or mappings to dataclasses, are built likewise;
  lists become tuples.

  Raises:
    ValueError: naming the field by its full path, the value and the rule.
  """
  if not isinstance(values, Mapping):
    raise ValueError(f"{where}={values!r}: must be a mapping of fields.")
  fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
  check_names(where, values, fields)
  for name, field in fields.items():
    required = field.default is field.default_factory is dataclasses.MISSING
    if required and name not in values:
      raise ValueError(f"{where}.{name}: must be given.")
  hints = typing.get_type_hints(cls)
  made = {
    name: _convert(hints[name], f"{where}.{name}", value)
    for name, value in values.items()
  }
  try:
    return cls(**made)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error


def defaults(cls: type) -> dict[str, Any]:
  """The fields of a dataclass that have a default value, with it."""
  return {
    f.name: f.default
    for f in dataclasses.fields(cls)
    if f.init and f.default is not dataclasses.MISSING
  }


def _convert(hint: Any, where: str, value: Any) -> Any:
  arguments = typing.get_args(hint)
  if typing.get_origin(hint) is Mapping and isinstance(value, Mapping):
    return {
      key: _convert(arguments[1], f"{where}.{key}", item)
      for key, item in value.items()
    }
  nested: list[Any] = [
    t for t in (hint, *arguments) if dataclasses.is_dataclass(t)
  ]
  if nested and not (value is None and type(None) in arguments):
    return build(nested[0], where, value)
  value = _to_tuples(value)
  if hint is not Any:
    check_type(where, value, hint)
  return value


def _to_tuples(value: Any) -> Any:
  if isinstance(value, list | tuple):
    return tuple(_to_tuples(item) for item in value)
  return value
