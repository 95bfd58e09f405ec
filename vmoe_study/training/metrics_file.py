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
  """Yields every complete line of a run's metrics file; none if there is none.

  An incomplete line, left by a killed process, is skipped.
  """
  path = epath.Path(workdir) / FILE_NAME
  if not path.exists():
    return
  for line in path.read_text().splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue
    yield {k: math.nan if v is None else v for k, v in row.items()}


def to_line(row: Mapping[str, float]) -> str:
  """One row as a line of the file."""
  values = {k: v if math.isfinite(v) else None for k, v in row.items()}
  return json.dumps(values) + "\n"
