"""How many of the eight CPU devices of this process a test sees.

Most tests see one. A step on eight devices takes twice as long to trace, to
compile and to run.
"""

import contextlib
from collections.abc import Iterator

import jax

_all_devices = jax.devices


def show(count: int) -> None:
  """Makes `jax.devices` and `jax.device_count` tell of so many devices."""
  jax.devices = lambda *backend: _all_devices(*backend)[:count]
  jax.device_count = lambda *backend: len(jax.devices(*backend))


@contextlib.contextmanager
def shown(count: int) -> Iterator[None]:
  """Shows so many devices, then as many as before."""
  before = jax.device_count()
  show(count)
  try:
    yield
  finally:
    show(before)
