"""The package as it is installed outside a clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
SOURCES = (
  "LICENSE",
  "README.md",
  "configs",
  "pyproject.toml",
  "setup.py",
  "vmoe_study",
)


def _files(folder: Path) -> set[str]:
  return {
    str(path.relative_to(folder))
    for path in folder.rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  }


@pytest.fixture(scope="module")
def site_packages(tmp_path_factory):
  """A folder with nothing but the installed package."""
  pytest.importorskip("setuptools")
  clone = tmp_path_factory.mktemp("clone")
  for name in SOURCES:
    copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
    copy(ROOT / name, clone / name)
  folder = tmp_path_factory.mktemp("installed")
  subprocess.run(
    [sys.executable, "setup.py", "-q", "build", f"--build-lib={folder}"],
    cwd=clone,
    check=True,
    capture_output=True,
  )
  return folder


def test_every_file_is_installed_in_the_package(site_packages):
  package, bundled = ROOT / "vmoe_study", "vmoe_study/_bundled/configs"
  assert _files(site_packages) == {
    *(f"vmoe_study/{file}" for file in _files(package)),
    *(f"{bundled}/{file.name}" for file in (ROOT / "configs").glob("*.py")),
  }


def test_configs_are_found_beside_another_package_of_that_name(
  site_packages, tmp_path
):
  other = tmp_path / "other" / "configs"
  other.mkdir(parents=True)
  (other / "__init__.py").write_text("OTHER = True\n")
  for name in "common", "digits":
    (other / f"{name}.py").write_text("raise AssertionError\n")
  own = tmp_path / "own"
  own.mkdir()
  (own / "seeds.py").write_text("SEED = 7\n")
  (own / "experiment.py").write_text(
    "from configs import digits\n"
    "from own.seeds import SEED\n"
    "def get_config(arguments=''):\n"
    "  config = digits.get_config(arguments)\n"
    "  config.seed = SEED\n"
    "  return config\n"
  )
  program = (
    "import sys\n"
    "import vmoe_study\n"
    "assert 'jax' not in sys.modules\n"
    "import configs as other\n"
    "assert other.OTHER\n"
    "config = vmoe_study.load_config('configs/digits.py:router=soft')\n"
    "assert config.model.moe.router == 'soft'\n"
    "config = vmoe_study.load_config('own/experiment.py:router=soft')\n"
    "assert (config.model.moe.router, config.seed) == ('soft', 7)\n"
    "assert sys.modules['configs'] is other\n"
  )
  paths = os.pathsep.join([str(other.parent), str(site_packages)])
  subprocess.run(
    [sys.executable, "-c", program],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": paths},
    check=True,
  )
