"""Writes metrics of a run: a metrics file and TensorBoard event files."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from vmoe_study.checkpoint.errors import brief
from vmoe_study.files.atomic import write_atomically
from vmoe_study.files.json_text import to_json
from vmoe_study.parallel import hosts
from vmoe_study.training.metrics_file import FILE_NAME, read_metrics
from vmoe_study.training.tensorboard import EventWriter


class MetricsWriter:
  """Writes scalars from process 0; on other processes it writes nothing.

  Every process of a multi-host run must call the constructor and
  `write_scalars`: an error on process 0 is raised on all of them.
  """

  def __init__(
    self, workdir: epath.PathLike, start_step: int = 0, on_error: str = "stop"
  ):
    """Opens the files.

    An interrupted run may have written metrics after the checkpoint that it
    resumes from. These rows are dropped, as they will be computed again.

    Args:
      workdir: an existing directory.
      start_step: the step at which the run starts or resumes.
      on_error: what to do if metrics cannot be written: "stop" raises,
        "continue" logs the error.

    Raises:
      OSError: a file cannot be opened.
      OtherHostError: process 0 cannot open a file.
    """
    self._on_error, self._line_is_complete = on_error, True
    self._path = epath.Path(workdir) / FILE_NAME
    self._active = jax.process_index() == 0
    with hosts.raise_on_all_hosts():
      self._open(workdir, start_step)

  def _open(self, workdir: epath.PathLike, start_step: int) -> None:
    if self._active:
      rows = read_metrics(workdir) if start_step else ()
      kept = [row for row in rows if row["step"] <= start_step]
      write_atomically(self._path, "".join(map(to_json, kept)))
      self._events = EventWriter(workdir)

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Appends {"step": step, name: value, ...}.

    Raises:
      OSError: the metrics cannot be written, and `on_error` is "stop".
      OtherHostError: process 0 cannot write the metrics.
    """
    with hosts.raise_on_all_hosts():
      if self._active:
        self._write(step, scalars)

  def _write(self, step: int, scalars: Mapping[str, Any]) -> None:
    row = {name: float(np.asarray(value)) for name, value in scalars.items()}
    try:
      self._append(to_json({"step": step, **row}))
      self._events.write_scalars(step, row)
    except Exception as error:  # On gs://, epath raises TensorFlow's own types.
      text = f"metrics of step {step} cannot be written: {brief(error)}."
      if self._on_error == "stop":
        raise OSError(f"{text} Free space, then run again.") from error
      logging.error("%s The run goes on without them.", text)

  def _append(self, line: str) -> None:
    # A failed append may have left an incomplete line: terminate it first.
    line = line if self._line_is_complete else "\n" + line
    self._line_is_complete = False
    with self._path.open("a") as file:
      file.write(line)
    self._line_is_complete = True

  def close(self) -> None:
    """Closes the event file; an error is only logged."""
    if self._active:
      try:
        self._events.close()
      except Exception as error:  # As in `_write`.
        logging.error("TensorBoard's files are incomplete: %s", brief(error))
