"""Metrics of a run: one JSON object per line, and TensorBoard's files.

JSON has no NaN and no infinity: both are written as null, and read as NaN.
"""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from absl import logging
from clu import metric_writers
from etils import epath

from vmoe_study.checkpoint.errors import brief
from vmoe_study.files.atomic import write_atomically
from vmoe_study.parallel import hosts

FILE_NAME = "metrics.jsonl"
_WRITE_ERRORS = (OSError, tf.errors.OpError)


class MetricsWriter:
  """Writes scalars of a run from process 0; elsewhere it writes nothing.

  Every process of a multi-host run calls its methods: it fails on all or none.
  """

  def __init__(
    self, workdir: epath.PathLike, start_step: int = 0, on_error: str = "stop"
  ):
    """Opens the files.

    An interrupted run may have written metrics after the checkpoint that it
    resumes from. They are dropped here: they will be computed again.

    Args:
      workdir: an existing directory.
      start_step: the step that the run starts or resumes from.
      on_error: "stop", or "continue" without metrics that cannot be written.
    """
    self._on_error, self._torn = on_error, False
    self._path = epath.Path(workdir) / FILE_NAME
    self._active = jax.process_index() == 0
    with hosts.raise_on_all_hosts():
      self._open(workdir, start_step)

  def _open(self, workdir: epath.PathLike, start_step: int) -> None:
    if self._active:
      rows = read_metrics(workdir) if start_step else ()
      rows = [row for row in rows if row["step"] <= start_step]
      write_atomically(self._path, "".join(map(_line, rows)))
      self._summaries = metric_writers.SummaryWriter(str(workdir))

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Appends {"step": step, name: value, ...}.

    Raises:
      OSError: it cannot be written, and the run shall stop then.
      OtherHostError: it could not be written elsewhere.
    """
    with hosts.raise_on_all_hosts():
      if self._active:
        self._write(step, scalars)

  def _write(self, step: int, scalars: Mapping[str, Any]) -> None:
    row = {name: float(np.asarray(value)) for name, value in scalars.items()}
    try:
      self._append(_line({"step": step, **row}))
      self._summaries.write_scalars(step, row)
    except _WRITE_ERRORS as error:
      text = f"metrics of step {step} cannot be written: {brief(error)}."
      if self._on_error == "stop":
        raise OSError(f"{text} Free space, then run again.") from error
      logging.error("%s The run goes on without them.", text)

  def _append(self, line: str) -> None:
    # What an append that failed has left of its line must end first.
    line = "\n" + line if self._torn else line
    self._torn = True
    with self._path.open("a") as file:
      file.write(line)
    self._torn = False

  def close(self) -> None:
    """Flushes and closes TensorBoard's files, as far as that is possible."""
    if self._active:
      try:
        self._summaries.flush()
        self._summaries.close()
      except _WRITE_ERRORS as error:
        logging.error("TensorBoard's files are not complete: %s", brief(error))


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
    yield {k: math.nan if v is None else v for k, v in row.items()}


def _line(row: Mapping[str, float]) -> str:
  row = {k: v if math.isfinite(v) else None for k, v in row.items()}
  return json.dumps(row) + "\n"
