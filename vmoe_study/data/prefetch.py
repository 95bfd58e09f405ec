"""Prepares batches in a thread, ahead of the training loop."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_END = object()


class Prefetcher(Iterator[T], Generic[T]):
  """An iterator that a thread runs ahead of its consumer.

  With host batches as items and the transfer to the devices as `put`, it is the
  `BatchStream` of the training loop.

  Attributes:
    wait_seconds: total time that the consumer has waited for items.
  """

  def __init__(
    self, iterator: Iterator[Any], put: Callable[[Any], T], size: int = 2
  ):
    """Starts the thread.

    Args:
      iterator: iterator of host batches. `next` raises its exceptions.
      put: function applied to an item when the consumer asks for it, so that
        waiting items take no device memory.
      size: number of items that may wait; 2 is double buffering.
    """
    self.wait_seconds = 0.0
    self._iterator = iterator
    self._put = put
    self._ready: queue.Queue[Any] = queue.Queue(maxsize=size)
    self._error: BaseException | None = None
    self._closed = threading.Event()
    self._thread = threading.Thread(target=self._fill, daemon=True)
    self._thread.start()

  def _fill(self) -> None:
    try:
      for item in self._iterator:
        if not self._offer(item):
          return
    except BaseException as error:  # Re-raised by `__next__`.
      self._error = error
    self._offer(_END)

  def _offer(self, item: Any) -> bool:
    """Queues `item` as soon as there is room; returns False if closed."""
    while not self._closed.is_set():
      try:
        self._ready.put(item, timeout=0.1)
        return True
      except queue.Full:
        pass
    return False

  def __next__(self) -> T:
    start = time.perf_counter()
    item = self._ready.get()
    self.wait_seconds += time.perf_counter() - start
    if item is not _END:
      return self._put(item)
    self._ready.put(_END)  # For further calls.
    if self._error is not None:
      raise self._error
    raise StopIteration

  def close(self) -> None:
    """Ends the thread, then closes the host iterator."""
    self._closed.set()
    self._thread.join()
    if hasattr(self._iterator, "close"):
      self._iterator.close()
