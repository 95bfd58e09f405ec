"""The folder of JAX's compilation cache, so that a restart compiles nothing.

All processes read from it, and the first one writes. JAX's key covers the
program, the versions of JAX and XLA, their flags and the kind of device. On
CPUs a program also depends on the number of cores and the instruction set,
which the key leaves out: a program from another machine can crash the process.
So each kind of CPU has a folder of its own.
"""

import contextlib
import hashlib
import os
import pathlib
import platform as platform_lib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from jax.experimental.compilation_cache import compilation_cache as jax_cache

FOLDER = ".compiled"  # In a workdir, or in the root of a sweep.
CPU_INFO = pathlib.Path("/proc/cpuinfo")  # On Linux.
CPU_LINES = ("model name", "flags", "CPU part", "Features")  # x86, then ARM.


def folder(root: epath.PathLike, platform: str, num_cores: int) -> epath.Path:
  """The cache folder of a platform.

  Args:
    root: a workdir, or a folder of many workdirs.
    platform: JAX's name of the backend: "cpu", "gpu" or "tpu".
    num_cores: number of cores that the process may use.
  """
  name = f"{_cpu()}_{num_cores}_cores" if platform == "cpu" else platform
  return epath.Path(root) / FOLDER / name


def _cpu() -> str:
  """A name of the processor and its instruction set."""
  known = platform_lib.machine() + platform_lib.processor()
  if CPU_INFO.exists():
    lines = CPU_INFO.read_text().splitlines()
    known += "".join(sorted({x for x in lines if x.startswith(CPU_LINES)}))
  digest = hashlib.sha256(known.encode()).hexdigest()
  return f"{platform_lib.machine()}_{digest[:8]}"


@contextlib.contextmanager
def cached_in(root: epath.PathLike) -> Iterator[None]:
  """Caches what is compiled in this context in a folder of `root`.

  Does nothing if JAX already has a cache folder, for example from
  JAX_COMPILATION_CACHE_DIR.
  """
  if jax.config.jax_compilation_cache_dir:
    yield
    return
  cores = len(os.sched_getaffinity(0))
  found = folder(root, jax.default_backend(), cores)
  options: dict[str, Any] = {"jax_compilation_cache_dir": str(found)}
  if "://" in str(found):
    # XLA reads and writes local files only. Compiling a small program is faster
    # than fetching it, and saving alone has a hundred: JAX leaves them out.
    options["jax_persistent_cache_enable_xla_caches"] = "none"
  else:
    options["jax_persistent_cache_min_compile_time_secs"] = 0.0
  before = {name: getattr(jax.config, name) for name in options}
  jax_cache.reset_cache()
  try:
    for name, value in options.items():
      jax.config.update(name, value)
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    jax_cache.reset_cache()
