"""Where compiled programs are kept, so that a restart compiles nothing.

JAX keeps them; this chooses the folder. All processes read from it, the first
one writes. A program is found again under its source, the versions of JAX and
XLA, their flags and the kind of the devices. For CPUs it depends on the number
of cores and the instructions too, which JAX leaves out: what another machine
compiled can end a process.
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
from jax.experimental.compilation_cache import compilation_cache

FOLDER = ".compiled"  # In a workdir, or in the root of a sweep.
CPU_INFO = pathlib.Path("/proc/cpuinfo")  # On Linux.
CPU_LINES = ("model name", "flags", "CPU part", "Features")  # x86, then ARM.


def folder(root: epath.PathLike, platform: str, num_cores: int) -> epath.Path:
  """Where programs for a platform are kept.

  Args:
    root: a workdir, or what many workdirs are in.
    platform: JAX's name of the backend: "cpu", "gpu" or "tpu".
    num_cores: that the process may use.
  """
  name = f"{_cpu()}_{num_cores}_cores" if platform == "cpu" else platform
  return epath.Path(root) / FOLDER / name


def _cpu() -> str:
  """Names what the processor of this machine can do."""
  known = platform_lib.machine() + platform_lib.processor()
  if CPU_INFO.exists():
    lines = CPU_INFO.read_text().splitlines()
    known += "".join(sorted({x for x in lines if x.startswith(CPU_LINES)}))
  digest = hashlib.sha256(known.encode()).hexdigest()
  return f"{platform_lib.machine()}_{digest[:8]}"


@contextlib.contextmanager
def kept_in(root: epath.PathLike) -> Iterator[None]:
  """Keeps what is compiled in this context in a folder of `root`.

  Does nothing if JAX was told a folder before, as by JAX_COMPILATION_CACHE_DIR.
  """
  if jax.config.jax_compilation_cache_dir:
    yield
    return
  cores = len(os.sched_getaffinity(0))
  found = folder(root, jax.default_backend(), cores)
  options: dict[str, Any] = {"jax_compilation_cache_dir": str(found)}
  if "://" in str(found):
    # XLA reads and writes local files only. Small programs, of which saving
    # alone has a hundred, are compiled sooner than sent: JAX leaves them out.
    options["jax_persistent_cache_enable_xla_caches"] = "none"
  else:
    options["jax_persistent_cache_min_compile_time_secs"] = 0.0
  before = {name: getattr(jax.config, name) for name in options}
  compilation_cache.reset_cache()
  try:
    for name, value in options.items():
      jax.config.update(name, value)
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
