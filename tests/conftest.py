"""Eight fake devices, quick compilation, shape checks, no silent broadcasts."""

import atexit
import os
import shutil
import tempfile

os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
  ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  # All processes of a run of the tests compile a program once. It is theirs
  # alone, so that no run tests what another one compiled.
  _programs = tempfile.mkdtemp(prefix="compiled-")
  atexit.register(shutil.rmtree, _programs, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

from jaxtyping import install_import_hook

install_import_hook("vmoe_study.routing", "beartype.beartype")
