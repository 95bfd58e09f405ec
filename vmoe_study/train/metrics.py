"""Metrics of a run: one JSON object per line, and TensorBoard's files."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from clu import metric_writers
from etils import epath

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
  """Writes scalars of a run from process 0; elsewhere it writes nothing."""

  def __init__(self, workdir: epath.PathLike, start_step: int = 0):
    """Opens the files.

    An interrupted run may have written metrics after the checkpoint that it
    resumes from. They are dropped here: they will be computed again.

    Args:
      workdir: an existing directory.
      start_step: the step that the run starts or resumes from.
    """
    self._path = epath.Path(workdir) / FILE_NAME
    self._active = jax.process_index() == 0
    if self._active:
      rows = [row for row in read_metrics(workdir) if row["step"] <= start_step]
      part = self._path.with_suffix(".part")
      part.write_text("".join(json.dumps(row) + "\n" for row in rows))
      part.replace(self._path)
      self._summaries = metric_writers.SummaryWriter(str(workdir))

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Appends {"step": step, name: value, ...}."""
    if not self._active:
      return
    row = {name: float(np.asarray(value)) for name, value in scalars.items()}
    with self._path.open("a") as file:
      file.write(json.dumps({"step": step, **row}) + "\n")
    self._summaries.write_scalars(step, row)

  def close(self) -> None:
    """Flushes and closes the files."""
    if self._active:
      self._summaries.flush()
      self._summaries.close()


def read_metrics(workdir: epath.PathLike) -> Iterator[dict[str, float]]:
  """Yields every complete line of a run's metrics file; none if there is none.

  A line that a killed process left unfinished is passed over.
  """
  path = epath.Path(workdir) / FILE_NAME
  if not path.exists():
    return
  for line in path.read_text().splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue
    yield row
