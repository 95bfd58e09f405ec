"""Iterating over batches, prepared ahead of time in threads or processes."""

import contextlib
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import threading
from collections.abc import Callable, Iterator

import cv2
import grain
from absl import flags

from vmoe_study.data.examples import Batch

THREADS = 2  # Of this process, if there are no worker processes.
BATCHES_AHEAD = 2


def iterate_batches(
  batches: grain.MapDataset,
  finish: Callable[[Batch], Batch],
  num_workers: int,
) -> Iterator[Batch]:
  """Yields all batches in order.

  Close the iterator (or let it be collected) to end its worker processes.

  Args:
    batches: collated batches.
    finish: applied to every batch in this process.
    num_workers: worker processes; 0 uses threads of this process.
  """
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags.
  workers = grain.MultiprocessingOptions(
    num_workers, per_worker_buffer_size=BATCHES_AHEAD
  )
  threads = 1 if num_workers else THREADS
  reading = grain.ReadOptions(threads, prefetch_buffer_size=BATCHES_AHEAD)
  dataset = batches.to_iter_dataset(reading)
  if num_workers:  # Its start would unblock the signals that are blocked here.
    multiprocessing.resource_tracker.ensure_running()
  with _requests_blocked():
    iterator = iter(dataset.mp_prefetch(workers, _start_worker))
  try:
    while True:
      with _requests_blocked():
        batch = next(iterator, None)
      if batch is None:
        return
      yield finish(batch)
  finally:
    iterator.close()


@contextlib.contextmanager
def _requests_blocked() -> Iterator[None]:
  """Processes that start in this context do not receive requests to stop.

  Ctrl-C, for example, goes to all processes of a terminal. The main process
  handles it and still needs its workers to do so.
  """
  requests = {signal.SIGINT, signal.SIGTERM}
  before = signal.pthread_sigmask(signal.SIG_BLOCK, requests)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(index: int, count: int) -> None:
  """Limits OpenCV to one thread per worker, as the workers share the cores."""
  del index, count
  cv2.setNumThreads(1)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Ends this worker when its parent ends, even if the parent is killed."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
