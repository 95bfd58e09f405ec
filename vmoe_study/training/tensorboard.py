"""Scalars in TensorBoard's event files, written without TensorFlow."""

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Iterable, Mapping

from etils import epath
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.summary.writer.record_writer import RecordWriter

_FILE_NUMBERS = itertools.count()  # Event files that this process has opened.


class EventWriter:
  """Appends scalars to an event file.

  Has the methods `write_scalars`, `flush` and `close` of CLU's metric writers,
  but is no subclass of theirs: importing them imports TensorFlow.
  """

  def __init__(self, folder: epath.PathLike):
    """Starts a new event file; raises OSError if it cannot be written."""
    self._folder = epath.Path(folder)
    self._file: RecordWriter | None = None
    self._write([])

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes and flushes one event per scalar, with the name as its tag.

    Raises:
      OSError: the events cannot be written. TensorBoard stops reading a file at
        an incomplete record, so the next call starts a new file.
    """
    now = time.time()
    self._write(
      Event(wall_time=now, step=step, summary=scalar_pb(name, value))
      for name, value in scalars.items()
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
    """Does nothing: `write_scalars` flushes."""

  def close(self) -> None:
    """Closes the file."""
    if self._file is not None:
      self._file.close()
