"""Checks of user input: names, types and ranges, before anything runs."""

import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from beartype import BeartypeConf
from beartype.door import is_bearable

MAX_SHOWN = 200  # Characters of a wrong value.
_NUMBERS = BeartypeConf(is_pep484_tower=True)  # An int is also a float.


# Upper bounds far beyond any use. Larger values would take minutes, or all
# memory, before anything else refused them.
UPPER_BOUNDS = {
  "num_classes": 10**7,
  "width": 10**6,
  "depth": 1000,
  "mlp_dim": 10**7,
  "num_heads": 10**4,
  "patch_size": 10**4,
  "representation_size": 10**6,
  "num_experts": 10**5,
  "num_selected_experts": 10**5,
  "max_experts_per_token": 10**5,
  "mean_experts_per_token": 10**5,
  "num_rounds": 10**5,
  "projection_dim": 10**5,
  "capacity_factor": 10**5,
  "capacity_multiple_of": 10**6,
  "slots_per_expert": 10**6,
  "num_iterations": 10**5,
  "group_images": 10**6,
  "batch_size": 10**7,
  "num_steps": 10**9,
  "num_epochs": 10**7,
  "accumulation": 10**5,
  "num_workers": 1000,
  "read_threads": 1000,
  "batches_ahead": 16,  # JAX's CPU collectives deadlock above 31 programs.
}


class OptionsError(ValueError):
  """Invalid user input, with every problem found.

  Attributes:
    problems: one message each.
  """

  def __init__(self, problems: Iterable[str]):
    # A single text is given where an error is raised again with more detail.
    if isinstance(problems, str):
      problems = (problems,)
    self.problems: tuple[str, ...] = tuple(problems)
    super().__init__("\n".join(self.problems))


def problems_of(error: Exception) -> tuple[str, ...]:
  """The messages of an error, one per problem."""
  return error.problems if isinstance(error, OptionsError) else (str(error),)


def check_names(where: str, given: Iterable[str], valid: Iterable[str]) -> None:
  """Raises OptionsError for names in `given` that are not in `valid`."""
  valid = sorted(valid)
  problems = []
  for name in sorted(set(given) - set(valid)):
    problems.append(
      f"{where}: unknown name {name!r}.{did_you_mean(name, valid)} "
      f"Valid names: {', '.join(valid) or 'none'}."
    )
  if problems:
    raise OptionsError(problems)


def check_keys(where: str, values: Iterable[Any]) -> None:
  """Raises OptionsError for keys of a mapping that are not strings."""
  problems = [
    f"{where}: the name {key!r} ({type(key).__name__}) must be a string. Write "
    "it in quotes, or remove it."
    for key in values
    if not isinstance(key, str)
  ]
  if problems:
    raise OptionsError(problems)


def did_you_mean(name: str, valid: Iterable[str]) -> str:
  """A sentence that proposes the most similar name; "" if none is similar."""
  close = difflib.get_close_matches(name, list(valid), n=1)
  return f" Did you mean {close[0]!r}?" if close else ""


def check_type(where: str, value: Any, hint: Any) -> None:
  """Raises ValueError unless `value` has the type `hint`.

  An int is accepted as a float, a bool only as a bool, and numbers must be
  finite.
  """
  options = typing.get_args(hint) or (hint,)
  item_hint = _item_hint(hint)
  if isinstance(value, tuple) and item_hint is not None:
    for i, item in enumerate(value):  # Beartype looks at one item of many.
      check_type(f"{where}[{i}]", item, item_hint)
    return
  if typing.get_origin(hint) is typing.Literal:
    accepted, described = value in options, " or ".join(map(repr, options))
  else:
    accepted = is_bearable(value, hint, conf=_NUMBERS)
    accepted &= not (isinstance(value, bool) and bool not in options)
    described = hint.__name__ if isinstance(hint, type) else str(hint)
  if not accepted:
    raise ValueError(
      f"{where}={_cut(repr(value))} ({type(value).__name__}): must be "
      f"{described}."
    )
  if hint is float and isinstance(value, int) and abs(value) >= 2**31:
    raise ValueError(f"{where}={value!r}: must be less than 2**31.")
  if isinstance(value, float) and not math.isfinite(value):
    raise ValueError(f"{where}={value!r}: must be a finite number.")


def _item_hint(hint: Any) -> Any:
  """X if the type is `tuple[X, ...]`, or a union with it; else None."""
  for option in (hint, *typing.get_args(hint)):
    items = typing.get_args(option)
    if typing.get_origin(option) is tuple and items[-1] is ...:
      return items[0]
  return None


def _cut(text: str) -> str:
  """The text of a value in a message, which is one line."""
  return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def check_least(where: str, value: float, least: float) -> None:
  """Raises ValueError if a value is below its lower bound."""
  if value < least:
    raise ValueError(f"{where}={value!r}: must be at least {least}.")


def check_upper_bounds(where: str, values: Mapping[str, Any]) -> None:
  """Raises ValueError for a value above the upper bound of its field."""
  for name, largest in UPPER_BOUNDS.items():
    value = values.get(name, 0)
    if isinstance(value, int | float) and value > largest:
      raise ValueError(
        f"{where}.{name}={value!r}: must be at most {largest:,}."
      )


def build(cls: type, where: str, values: Any) -> Any:
  """Makes a dataclass from a mapping, checking every name, type and value.

  Nested dataclasses and mappings to dataclasses are built the same way. Lists
  become tuples.

  Raises:
    OptionsError: names every field that is wrong by its full path, with the
      value and the rule.
  """
  if not isinstance(values, Mapping):
    raise ValueError(
      f"{where}={_cut(repr(values))}: must be a mapping of fields."
    )
  check_keys(where, values)
  fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
  hints = typing.get_type_hints(cls)

  def convert(name: str) -> Any:
    if name in values:
      return _convert(hints[name], f"{where}.{name}", values[name])
    raise ValueError(f"{where}.{name}: must be given.")

  known = [n for n in fields if n in values or _is_required(fields[n])]
  checks = [lambda: check_names(where, values, fields)]
  checks += [functools.partial(convert, name) for name in known]
  _, *made = _all(checks)
  try:
    return cls(**dict(zip(known, made, strict=True)))
  except ValueError as error:
    raise OptionsError(f"{where}: {p}" for p in problems_of(error)) from error


def _all(calls: Iterable[Callable[[], Any]]) -> list[Any]:
  """Results of all calls; if any fails, raises the problems of all."""
  results: list[Any] = []
  problems: list[str] = []
  for call in calls:
    try:
      results.append(call())
    except ValueError as error:
      problems += problems_of(error)
  if problems:
    raise OptionsError(problems)
  return results


def _is_required(field: dataclasses.Field) -> bool:
  return field.default is field.default_factory is dataclasses.MISSING


def defaults(cls: type) -> dict[str, Any]:
  """Default values of a dataclass, by field."""
  return {
    f.name: f.default
    for f in dataclasses.fields(cls)
    if f.init and f.default is not dataclasses.MISSING
  }


def _convert(hint: Any, where: str, value: Any) -> Any:
  arguments = typing.get_args(hint)
  if typing.get_origin(hint) is Mapping and isinstance(value, Mapping):
    check_keys(where, value)
    conversions = [
      functools.partial(_convert, arguments[1], f"{where}.{key}", item)
      for key, item in value.items()
    ]
    return dict(zip(value, _all(conversions), strict=True))
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
