"""Propagates an error on one host to all hosts, so that none waits for it."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils


class OtherHostError(Exception):
  """Another host of this run failed; its log has the error."""


@contextlib.contextmanager
def raise_on_all_hosts() -> Iterator[None]:
  """Raises on every host if the block fails on any host.

  Every process of a run must enter the block. None leaves it before all have
  reached its end.

  Raises:
    Exception: the block raised it in this process.
    OtherHostError: the block failed in another process.
  """
  failure = None
  try:
    yield
  except Exception as error:
    failure = error
  failed = np.array(failure is not None)
  if jax.process_count() > 1:
    failed = multihost_utils.process_allgather(failed).any()
  if failure is not None:
    raise failure
  if failed:
    raise OtherHostError("Another process of this run has failed: see its log.")
