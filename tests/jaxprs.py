"""The equations of a traced program."""

from collections.abc import Iterator
from typing import Any


def equations(jaxpr: Any) -> Iterator[Any]:
  """Every equation of a program and of its inner programs."""
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      for item in value if isinstance(value, tuple | list) else [value]:
        inner = getattr(item, "jaxpr", item)
        if hasattr(inner, "eqns"):
          yield from equations(inner)
