"""Tells from its checkpoints and metrics whether a run has finished.

The loop saves a step before it evaluates it, and writes all metrics of an
evaluation at once. So a run has finished when the checkpoint of its last step
is complete and the metrics of that step are there. Needs neither JAX nor Orbax.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

CHECKPOINTS = "checkpoints"  # The folder in a workdir.


def is_evaluated(
  config: Mapping[str, Any], rows: Iterable[Mapping[str, float]], step: int
) -> bool:
  """Whether the metrics of a step include every evaluation of the config.

  Args:
    config: completed, of the run.
    rows: of its metrics file.
    step: number of updates.
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

  A run always creates a folder of checkpoints. If there is none, it was removed
  later, and the last row of the metrics file tells the last step.

  Args:
    workdir: of the run.
    config: completed, of the run.
    rows: of its metrics file.
  """
  lengths = [int(row["num_steps"]) for row in rows if "num_steps" in row]
  if not lengths:
    return False
  folder, last = epath.Path(workdir) / CHECKPOINTS, lengths[-1]
  if folder.exists():
    is_saved = (folder / str(last)).exists()
  else:
    is_saved = rows[-1]["step"] == last
  return is_saved and is_evaluated(config, rows, last)
