"""Standard JSON: without NaN and infinity."""

import json
import math
from collections.abc import Mapping
from typing import Any

# What code that takes a JSON value apart raises if it has another form.
MALFORMED = (
  AttributeError,
  LookupError,
  RecursionError,
  TypeError,
  ValueError,
)


def to_json(value: Any, indent: int | None = None) -> str:
  """A line or, with an indent, lines of JSON, with "\\n" at the end.

  NaN and infinity become null.

  >>> to_json({"loss": float("nan"), "shots": (1, 5)})
  '{"loss": null, "shots": [1, 5]}\\n'
  """
  text = json.dumps(_finite(value), indent=indent, allow_nan=False)
  return text + "\n"


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(item) for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
