"""How the tests compile, here and in other processes; a Python for scripts."""

import os
import pathlib
import sys
from importlib import metadata

# A tiny program takes far longer to compile than to run.
FAST_COMPILATION = [
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_parallel_codegen_split_count=1",
]
# Neither libtpu nor later versions of jaxlib know it, and each aborts on it.
OLD_EMITTERS = "--xla_cpu_use_fusion_emitters=false"
HAS_OLD_EMITTERS = metadata.version("jaxlib").startswith("0.10.")


def xla_flags(devices: int) -> str:
  """XLA_FLAGS of a process with so many CPU devices, and without libtpu."""
  count = f"--xla_force_host_platform_device_count={devices}"
  return " ".join(
    [count, *FAST_COMPILATION, *[OLD_EMITTERS] * HAS_OLD_EMITTERS]
  )


def start_jax(devices: int) -> None:
  """Starts JAX in this process with so many CPU devices.

  The processes that this one starts have one, unless they ask for more.
  """
  given = os.environ.get("XLA_FLAGS", "")
  os.environ["XLA_FLAGS"] = f"{given} {xla_flags(devices)}"

  import jax

  jax.devices()  # The CPU's compiler has read its flags, libtpu reads later.
  later = xla_flags(1).replace(OLD_EMITTERS, "")
  os.environ["XLA_FLAGS"] = f"{given} {later}"


def unchecking_python(folder: pathlib.Path) -> str:
  """A Python for the launch scripts, whose check any command then passes."""
  program = folder / "unchecking_python"
  program.write_text(
    "#!/bin/sh\n"
    'case "$1" in */check_command.py) exit 0 ;; esac\n'
    f'exec {sys.executable} "$@"\n'
  )
  program.chmod(0o755)
  return str(program)
