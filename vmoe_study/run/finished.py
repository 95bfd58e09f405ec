"""Determines from checkpoints and metrics whether a run has finished.

The loop saves a step before it evaluates it, and writes all metrics of an
evaluation at once. So a run has finished if the checkpoint of its last step is
complete and the metrics of that step exist. If the run stopped early, these
metrics say so. The module needs neither JAX nor Orbax.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from vmoe_study.training.metrics_file import STOPPED_EARLY

CHECKPOINTS = "checkpoints"  # The folder in a workdir.


def is_evaluated(
  config: Mapping[str, Any], rows: Iterable[Mapping[str, float]], step: int
) -> bool:
  """Whether the metrics of a step include every evaluation of the config.

  Args:
    config: completed config of the run.
    rows: rows of the run's metrics file.
    step: number of training steps.
  """
  names = {name for row in rows if row["step"] == step for name in row}
  wanted = [f"{name}/" for name in config.get("evaluations", ())]
  wanted += [f"fewshot/{name}/" for name in config.get("fewshot", ())]
  return all(any(n.startswith(prefix) for n in names) for prefix in wanted)


def is_finished(
  workdir: epath.PathLike,
  config: Mapping[str, Any],
  rows: Sequence[Mapping[str, float]],
) -> bool:
  """Whether the last step is saved and evaluated.

  Args:
    workdir: workdir of the run.
    config: completed config of the run.
    rows: rows of the run's metrics file.
  """
  last = last_step(rows)
  if last is None:
    return False
  is_saved = _is_saved(epath.Path(workdir) / CHECKPOINTS, last)
  return is_saved and is_evaluated(config, rows, last)


def last_step(rows: Sequence[Mapping[str, float]]) -> int | None:
  """The last step of a run: the planned one, or the one where it stopped early.

  Args:
    rows: rows of the run's metrics file.

  Returns:
    The step; None if the rows do not contain it.
  """
  early = [int(row["step"]) for row in rows if STOPPED_EARLY in row]
  lengths = [row["num_steps"] for row in rows if "num_steps" in row]
  if early:
    return early[-1]
  return int(lengths[-1]) if lengths and math.isfinite(lengths[-1]) else None


def _is_saved(folder: epath.Path, step: int) -> bool:
  """Whether Orbax has completed the checkpoint of a step.

  Orbax renames the folder when it is complete. On gs://, where folders cannot
  be renamed, it adds a file instead.
  """
  path = folder / str(step)
  if str(path).startswith("gs://"):
    path /= "commit_success.txt"
  return path.exists()
