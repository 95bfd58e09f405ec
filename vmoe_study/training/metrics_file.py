"""The metrics file of a run: one JSON object per line.

JSON has no NaN and no infinity: both are written as null and read as NaN.
Reading needs neither JAX nor CLU.
"""

import json
import math
from collections.abc import Iterator, Mapping

from etils import epath

FILE_NAME = "metrics.jsonl"


def read_metrics(workdir: epath.PathLike) -> Iterator[dict[str, float]]:
  """Yields the rows of a run's metrics file; none if there is no file.

  Lines that are not rows are skipped: a killed process or a full disk may leave
  an incomplete line.
  """
  path = epath.Path(workdir) / FILE_NAME
  if not path.exists():
    return
  for line in path.read_text().splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue
    if isinstance(row, dict) and "step" in row:
      yield from_json(row)


def from_json(row: Mapping[str, float | None]) -> dict[str, float]:
  """Reads null as NaN."""
  return {k: math.nan if v is None else v for k, v in row.items()}
