"""Tells that something slow is still going on."""

import contextlib
import threading
import time
from collections.abc import Iterator

from absl import logging

SECONDS = 10


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
  """Logs every `SECONDS` how long the block has been running."""
  start, done = time.monotonic(), threading.Event()

  def tell():
    while not done.wait(SECONDS):
      logging.info("%s: %.0f s", what, time.monotonic() - start)

  thread = threading.Thread(target=tell, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
