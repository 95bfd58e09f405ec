"""Writes the metrics of a run to its metrics file and to trackers."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging
from etils import epath
from flax.traverse_util import flatten_dict

from vmoe_study.checkpoint.errors import one_line
from vmoe_study.files.atomic import write_atomically
from vmoe_study.files.json_text import to_json
from vmoe_study.parallel import hosts
from vmoe_study.training.metrics_file import FILE_NAME, read_metrics
from vmoe_study.training.tensorboard import EventWriter
from vmoe_study.training.trackers import open_tracker


class TrackerWriter(Protocol):
  """A writer to a tool that shows a run while it trains.

  The methods are those of CLU's `MetricWriter` that are needed here. CLU's
  class is not the base class because importing it imports TensorFlow.
  """

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None: ...

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Takes uint8 images (H, W, 3)."""

  def write_histograms(
    self, step: int, arrays: Mapping[str, np.ndarray]
  ) -> None:
    """Takes arrays of any shape; writes the distributions of their values."""

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None: ...

  def write_hparams(self, hparams: Mapping[str, Any]) -> None: ...

  def flush(self) -> None: ...

  def close(self) -> None: ...


class MetricsWriter:
  """Writes metrics on process 0; does nothing on other processes.

  The metrics file receives the scalars; TensorBoard's event files and the
  trackers receive everything.

  Every process of a multi-host run must call the constructor and all methods
  but `close`: an error on process 0 is raised on all of them.
  """

  def __init__(
    self,
    workdir: epath.PathLike,
    start_step: int = 0,
    on_error: str = "stop",
    trackers: Sequence[str] = (),
  ):
    """Opens the files.

    An interrupted run may have written metrics after the checkpoint that it
    resumes from. These rows are dropped, as they will be computed again.

    Args:
      workdir: an existing directory.
      start_step: the step at which the run starts or resumes.
      on_error: what to do if metrics cannot be written: "stop" raises,
        "continue" logs the error.
      trackers: names of `trackers.TRACKERS`.

    Raises:
      OSError: a file cannot be opened.
      OtherHostError: process 0 cannot open a file.
    """
    self._on_error, self._line_is_complete = on_error, True
    self._path = epath.Path(workdir) / FILE_NAME
    self._active = jax.process_index() == 0
    with hosts.raise_on_all_hosts():
      self._writers = self._open(workdir, start_step, trackers)

  def _open(
    self, workdir: epath.PathLike, start_step: int, trackers: Sequence[str]
  ) -> list[TrackerWriter]:
    if not self._active:
      return []
    rows = read_metrics(workdir) if start_step else ()
    kept = [row for row in rows if row["step"] <= start_step]
    write_atomically(self._path, "".join(map(to_json, kept)))
    opened = [open_tracker(name, workdir) for name in trackers]
    return [EventWriter(workdir), *opened]

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Appends {"step": step, name: value, ...}.

    Raises:
      OSError: the metrics cannot be written, and `on_error` is "stop".
      OtherHostError: process 0 cannot write the metrics.
    """
    row = {name: float(np.asarray(value)) for name, value in scalars.items()}
    with self._reporting(f"metrics of step {step}"):
      if self._active:
        self._append(to_json({"step": step, **row}))
      for writer in self._writers:
        writer.write_scalars(step, row)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes uint8 images (H, W, 3); raises like `write_scalars`."""
    with self._reporting(f"images of step {step}"):
      for writer in self._writers:
        writer.write_images(step, images)

  def write_histograms(self, step: int, arrays: Mapping[str, Any]) -> None:
    """Writes distributions of values; raises like `write_scalars`."""
    with self._reporting(f"histograms of step {step}"):
      for writer in self._writers:
        found = {name: np.asarray(array) for name, array in arrays.items()}
        writer.write_histograms(step, found)

  def write_config(self, step: int, config: Mapping[str, Any]) -> None:
    """Writes a completed config, as text and as hyper-parameters.

    Raises:
      See `write_scalars`.
    """
    text = json.dumps(config, indent=2)
    flat = flatten_dict(config, sep=".", keep_empty_nodes=False)
    with self._reporting("the config"):
      for writer in self._writers:
        writer.write_texts(step, {"config": f"```\n{text}\n```"})
        writer.write_hparams(flat)

  @contextlib.contextmanager
  def _reporting(self, what: str) -> Iterator[None]:
    """Handles errors according to `on_error`; raises them on all hosts."""
    with hosts.raise_on_all_hosts():
      try:
        yield
      except Exception as error:  # Of trackers, or epath's for gs://.
        text = f"{what} cannot be written: {one_line(error)}."
        if self._on_error == "stop":
          raise OSError(f"{text} Free space, then run again.") from error
        logging.error("%s The run continues without them.", text)

  def _append(self, line: str) -> None:
    # A failed append may have left an incomplete line: terminate it first.
    line = line if self._line_is_complete else "\n" + line
    self._line_is_complete = False
    with self._path.open("a") as file:
      file.write(line)
    self._line_is_complete = True

  def close(self) -> None:
    """Closes the event file and the trackers; an error is only logged."""
    for writer in self._writers:
      try:
        writer.close()
      except Exception as error:  # As in `_reporting`.
        name = type(writer).__name__
        logging.error("What %s shows is incomplete: %s", name, one_line(error))
