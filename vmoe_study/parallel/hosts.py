"""What fails on one host fails on all: none is left waiting for another."""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils


class OtherHostError(Exception):
  """Another host of this run has failed; its own log says how."""


@contextlib.contextmanager
def raise_on_all_hosts() -> Iterator[None]:
  """Lets no host go on from a block that has failed on one of them.

  Every process of a run enters the block, and leaves it when all have left it.

  Raises:
    Exception: what this process met.
    OtherHostError: another process met something.
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
