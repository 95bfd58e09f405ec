"""Checks on what a user wrote: names and types, before anything runs."""

import difflib
import math
import typing
from collections.abc import Iterable
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
