"""Installs this clone into the Python that runs a notebook, as on Colab.

The first cell of a notebook runs this script if the package is missing. Other
packages keep their versions if these satisfy setup.py.
"""

import importlib.util
import pathlib
import subprocess
import sys
from importlib import metadata

CLONE = pathlib.Path(__file__).resolve().parents[1]
# An installed module -> the extra that installs JAX for the same devices.
PLUGINS = {
  "jax_cuda12_plugin": "cuda12",
  "jax_cuda13_plugin": "cuda13",
  "libtpu": "tpu",
}
IMPORTED = ("jax", "numpy")  # By kernels or earlier cells.


def requirements() -> list[str]:
  """The requirements to pass to pip.

  If JAX is too old, its plugin for GPUs or TPUs has to be replaced with it.
  NumPy 2 is kept, because TensorFlow and other packages were built for this
  version: pip then selects a JAX that fits.
  """
  found = [extra for name, extra in PLUGINS.items() if _is_installed(name)]
  wanted = [f"{CLONE}[{','.join(found)}]" if found else str(CLONE)]
  if _is_installed("numpy") and metadata.version("numpy").startswith("2."):
    wanted.append(f"numpy=={metadata.version('numpy')}")
  return wanted


def _is_installed(module: str) -> bool:
  return importlib.util.find_spec(module) is not None


def main() -> None:
  """Installs the package; reports if the session has to be restarted."""
  command = [sys.executable, "-m", "pip", "install", "-q", *requirements()]
  subprocess.run(command, check=True)
  importlib.invalidate_caches()
  for name in IMPORTED:
    module = sys.modules.get(name)
    if module and module.__version__ != metadata.version(name):
      raise SystemExit(
        f"{name} {metadata.version(name)} was installed, but version "
        f"{module.__version__} is imported. Restart the session, and run the "
        "notebook from the top."
      )


if __name__ == "__main__":
  main()
