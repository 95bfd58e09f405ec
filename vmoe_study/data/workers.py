"""Worker processes that compute the batches of all inputs of a run.

Every batch is cut into one part per worker. A worker always computes the same
part, so it knows what it will read next, and no worker holds a finished batch
while the others work on later ones. Workers write the images of a batch into
the same array, which is in anonymous shared memory (`shared_array`), so the
size of /dev/shm does not matter. All else is sent to the main process.
"""

import atexit
import collections
import contextlib
import dataclasses
import itertools
import mmap
import multiprocessing
import multiprocessing.resource_tracker
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import connection, reduction
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from vmoe_study.data.freed_memory import keep_freed_memory
from vmoe_study.data.shared_array import SharedArrays

CPU_LIMIT = "/sys/fs/cgroup/cpu.max"  # "QUOTA PERIOD" in the same unit.
KEPT_BYTES = 2**28  # Freed memory that a worker process keeps at most.
THREADS = 2  # Of this process, if there are no worker processes.
BATCHES_AHEAD = 2

Part = dict[str, np.ndarray]
ComputePart = Callable[[int, np.ndarray], Part]
"""Takes the step, and the images of the whole batch, of which it writes its
own; returns the other arrays of its part."""


class Parts(Protocol):
  """Batches to be computed in parts; pickled for the workers."""

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the images of a batch on this host; they are uint8."""

  def open(self, number: int, count: int) -> ComputePart:
    """Returns a function that computes part `number` of `count`."""


class WorkerError(OSError):
  """A worker process ended before it finished its work."""


class Workers:
  """Computes batches in processes that start with the first batch and stay.

  Attributes:
    count: number of worker processes; 0 if threads do the work instead.
  """

  def __init__(self, count: int = 0):
    """Does not start any process yet."""
    self.count = count
    self._workers: list[_Process] | list[_Thread] = []
    self._numbers = itertools.count()
    self._lock = threading.Lock()

  def iterate(
    self, parts: Parts, steps: Iterable[int]
  ) -> Iterator[tuple[np.ndarray, list[Part]]]:
    """Yields the images and all parts of the batches of `steps`, in order.

    Several iterations may run at the same time, in several threads. Close the
    iterator (or let it be garbage-collected) to stop its work.

    Raises:
      Exception: a part could not be computed.
      WorkerError: a worker process has ended.
    """
    workers = self._start()[: parts.shape[0]]
    number, memory = next(self._numbers), SharedArrays(parts.shape)
    for place, worker in enumerate(workers):
      worker.open(number, parts, place, len(workers))
    waiting: collections.deque[_Waiting] = collections.deque()
    try:
      for step in steps:
        images = memory.take()
        futures = [worker.submit(number, step, images) for worker in workers]
        waiting.append(_Waiting(images, futures))
        del images  # So that it is free when the caller no longer uses it.
        if len(waiting) > BATCHES_AHEAD:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    finally:
      for worker in workers:
        worker.forget(number)

  def _start(self) -> "Sequence[_Process] | Sequence[_Thread]":
    with self._lock:
      if not self._workers and self.count:
        multiprocessing.resource_tracker.ensure_running()
        with _requests_blocked():
          self._workers = [_Process(number) for number in range(self.count)]
      elif not self._workers:
        self._workers = [_Thread() for _ in range(THREADS)]
      return self._workers

  def close(self) -> None:
    """Ends all workers; a later iteration starts new ones."""
    with self._lock:
      workers, self._workers = self._workers, []
    for worker in workers:
      worker.close()


@dataclasses.dataclass(frozen=True)
class _Waiting:
  """A batch that is being computed."""

  images: np.ndarray
  parts: list[Future[Part]]

  def result(self) -> tuple[np.ndarray, list[Part]]:
    return self.images, [part.result() for part in self.parts]


def num_cores() -> int:
  """Number of processor cores that this process may use.

  That is the number in its CPU affinity, or less if its control group has a
  smaller CPU quota.
  """
  cores = len(os.sched_getaffinity(0))
  with contextlib.suppress(OSError, ValueError):
    quota, period = Path(CPU_LIMIT).read_text().split()
    cores = min(cores, max(1, int(quota) // int(period)))
  return cores


_SHARED: dict[int, Workers] = {}


def shared_workers(count: int) -> Workers:
  """The workers shared by all inputs of this process with this `count`."""
  return _SHARED.setdefault(count, Workers(count))


def close_workers() -> None:
  """Ends all shared workers; the next use starts new ones."""
  for workers in _SHARED.values():
    workers.close()


class _Thread:
  """A worker in this process."""

  def __init__(self) -> None:
    self._thread = ThreadPoolExecutor(1, "worker")
    self._open: dict[int, ComputePart] = {}

  def open(self, number: int, parts: Parts, place: int, count: int) -> None:
    self._open[number] = parts.open(place, count)

  def submit(self, number: int, step: int, images: np.ndarray) -> Future[Part]:
    return self._thread.submit(self._open[number], step, images)

  def forget(self, number: int) -> None:
    self._open.pop(number, None)

  def close(self) -> None:
    self._thread.shutdown(cancel_futures=True)


class _Process:
  """A worker process, as seen from this process."""

  def __init__(self, number: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    self._connection, theirs = spawn.Pipe()
    self._process = spawn.Process(
      target=_serve, args=(theirs,), name=f"input-{number}", daemon=True
    )
    self._process.start()
    # At exit Python would ask it to stop, which it ignores, and then wait.
    atexit.register(self._process.kill)
    theirs.close()  # So that reading ends with the process.
    self._lock, self._sending = threading.Lock(), threading.Lock()
    self._waiting: dict[tuple[int, int], Future[Part]] = {}
    self._known: dict[int, set[int]] = {}  # Files that the process has.
    self._error: Exception | None = None
    self._receiver = threading.Thread(target=self._receive, daemon=True)
    self._receiver.start()

  def open(self, number: int, parts: Parts, place: int, count: int) -> None:
    self._known[number] = set()
    self._send(number, None, (parts, place, count))

  def submit(self, number: int, step: int, images: np.ndarray) -> Future[Part]:
    future: Future[Part] = Future()
    with self._lock:
      if self._error is not None:
        raise self._error
      self._waiting[number, step] = future
    file = images.base.descriptor
    is_new = file not in self._known[number]
    self._known[number].add(file)
    self._send(number, step, (file, is_new), file=file if is_new else None)
    return future

  def forget(self, number: int) -> None:
    self._known.pop(number, None)
    self._send(number, None, None)

  def close(self) -> None:
    atexit.unregister(self._process.kill)
    self._process.kill()  # It holds nothing that must be saved.
    self._receiver.join()
    self._connection.close()

  def _send(self, *message: Any, file: int | None = None) -> None:
    """Sends a message, and the descriptor of a file."""
    # `_receive` notices the end of the process, too.
    with self._sending, contextlib.suppress(OSError):
      self._connection.send(message)
      if file is not None:
        reduction.send_handle(self._connection, file, self._process.pid)

  def _receive(self) -> None:
    with contextlib.suppress(EOFError, OSError):
      while True:
        number, step, part, error = self._connection.recv()
        future = self._waiting.pop((number, step))
        if error is not None:
          future.set_exception(error)
        else:
          future.set_result(part)
    self._process.join()
    with self._lock:
      self._error = WorkerError(_describe_end(self._process.exitcode))
    for future in self._waiting.values():
      future.set_exception(self._error)


def _describe_end(exit_code: int | None) -> str:
  ended = f"exit code {exit_code}"
  if exit_code is not None and exit_code < 0:
    ended = signal.strsignal(-exit_code) or f"signal {-exit_code}"
  return (
    f"a process that reads data has ended: {ended}. Run again to resume from "
    "the last checkpoint. If it ends again, memory may be exhausted: lower "
    "train.num_workers, or give the job more memory."
  )


def _serve(requests: connection.Connection) -> None:
  """The main function of a worker process.

  A request is (number of an iteration, step, file of the images) for a part,
  (number, None, what to open) to begin an iteration, or (number, None, None) to
  drop it.
  """
  cv2.setNumThreads(1)  # The workers share the cores.
  keep_freed_memory(KEPT_BYTES)
  threading.Thread(target=_end_with_parent, daemon=True).start()
  iterations: dict[int, _Iteration] = {}
  while True:
    number, step, what = requests.recv()
    if step is not None:
      file, is_new = what
      if is_new:
        iterations[number].add(file, reduction.recv_handle(requests))
      requests.send((number, step, *iterations[number].answer(step, file)))
    elif what is not None:
      iterations[number] = _Iteration(*what)
    else:
      iterations.pop(number, None)


class _Iteration:
  """An iteration, as seen from a worker process."""

  def __init__(self, parts: Parts, place: int, count: int):
    self._shape, self._compute = parts.shape, parts.open(place, count)
    self._images: dict[int, np.ndarray] = {}

  def add(self, file: int, descriptor: int) -> None:
    """Opens an array; `file` is its descriptor in the main process."""
    memory = mmap.mmap(descriptor, 0)
    os.close(descriptor)
    self._images[file] = np.ndarray(self._shape, np.uint8, memory)

  def answer(
    self, step: int, file: int
  ) -> tuple[Part | None, Exception | None]:
    """Computes a part; returns it, or an error."""
    try:
      return self._compute(step, self._images[file]), None
    except Exception as error:
      return None, _picklable(error)


def _picklable(error: Exception) -> Exception:
  """A picklable error with the traceback as a note, or a simpler error."""
  error.add_note("".join(traceback.format_exception(error)))
  try:
    pickle.loads(pickle.dumps(error))
  except Exception:
    return RuntimeError("\n".join(error.__notes__))
  return error


@contextlib.contextmanager
def _requests_blocked() -> Iterator[None]:
  """Processes that start in this context do not receive requests to stop.

  Ctrl-C, for example, goes to all processes of a terminal. The main process
  handles it, and needs its workers to do so.
  """
  requests = {signal.SIGINT, signal.SIGTERM}
  before = signal.pthread_sigmask(signal.SIG_BLOCK, requests)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
  """Ends this worker when its parent ends, even if the parent is killed."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    connection.wait([parent.sentinel])
    os._exit(1)
