"""The metrics file of a run: one JSON object per line.

JSON has no NaN and no infinity: both are written as null and read as NaN.
Reading needs neither JAX nor CLU.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

FILE_NAME = "metrics.jsonl"
# A metric in the row of the evaluation that ended a run early.
STOPPED_EARLY = "stopped_early"


def read_metrics(workdir: epath.PathLike) -> Iterator[dict[str, float]]:
  """Yields the rows of a run's metrics file; none if there is no file.

  Skips lines that are not rows, because a killed process or a full disk may
  leave an incomplete line, and values that are not numbers.
  """
  path = epath.Path(workdir) / FILE_NAME
  if not path.exists():
    return
  for line in path.read_bytes().splitlines():
    try:
      row = json.loads(line)
    except (ValueError, RecursionError):
      continue
    if isinstance(row, dict) and type(row.get("step")) is int:
      yield from_json(row)


def from_json(row: Mapping[str, Any]) -> dict[str, float]:
  """The numbers of a row; null is NaN."""
  found = {k: math.nan if v is None else v for k, v in row.items()}
  return {k: v for k, v in found.items() if _is_number(v)}


def _is_number(value: Any) -> bool:
  """Whether a value is a number that fits into a float."""
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return is_number and (isinstance(value, float) or abs(value) < 2**63)
