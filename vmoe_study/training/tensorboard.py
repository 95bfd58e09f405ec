"""TensorBoard's event files, written without TensorFlow."""

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
from etils import epath
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

_FILE_NUMBERS = itertools.count()  # Event files that this process has opened.


class EventWriter:
  """Appends to an event file; a `metrics.TrackerWriter`.

  TensorBoard stops reading a file at an incomplete record, so after an OSError
  the next call starts a new file.
  """

  def __init__(self, folder: epath.PathLike):
    """Starts a new event file; raises OSError if it cannot be written."""
    self._folder = epath.Path(folder)
    self._file: RecordWriter | None = None
    self._write([])

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes and flushes one event per scalar, with the name as its tag."""
    self._summarize(step, map(scalar_pb, scalars, scalars.values()))

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes uint8 images (H, W, 3)."""
    self._summarize(step, map(_image_pb, images, images.values()))

  def write_histograms(
    self, step: int, arrays: Mapping[str, np.ndarray]
  ) -> None:
    """Writes the distributions of the values of arrays."""
    self._summarize(step, map(histogram_pb, arrays, arrays.values()))

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Writes texts, which are shown as Markdown."""
    self._summarize(step, map(text_pb, texts, texts.values()))

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Writes hyper-parameters for the HParams dashboard."""
    scalars = bool, int, float, str
    values = {
      name: value if isinstance(value, scalars) else str(value)
      for name, value in hparams.items()
    }
    self._summarize(0, [hparams_pb(values, trial_id=str(self._folder))])

  def _summarize(self, step: int, summaries: Iterable[Summary]) -> None:
    now = time.time()
    self._write(
      Event(wall_time=now, step=step, summary=summary) for summary in summaries
    )

  def _write(self, events: Iterable[Event]) -> None:
    file, self._file = self._file or self._open(), None
    try:
      for event in events:
        file.write(event.SerializeToString())
      file.flush()
    except Exception:
      with contextlib.suppress(Exception):
        file.close()
      raise
    self._file = file

  def _open(self) -> RecordWriter:
    now, number = time.time(), next(_FILE_NUMBERS)
    # TensorBoard reads the files of a folder in the order of their names.
    parts = f"{now:010.0f}.{socket.gethostname()}.{os.getpid()}.{number:04d}"
    name = f"events.out.tfevents.{parts}.v2"
    file = RecordWriter((self._folder / name).open("wb"))
    version = Event(wall_time=now, file_version="brain.Event:2")
    file.write(version.SerializeToString())
    return file

  def flush(self) -> None:
    """Does nothing: all methods flush."""

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()


def _image_pb(name: str, image: np.ndarray) -> Summary:
  """The summary of an image; TensorBoard's own function needs TensorFlow."""
  height, width, _ = image.shape
  encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
  content = [str(width).encode(), str(height).encode(), encoded]
  summary = Summary()
  summary.value.add(
    tag=name,
    metadata=image_metadata.create_summary_metadata(None, None),
    tensor=make_tensor_proto(content, dtype=np.object_),
  )
  return summary
