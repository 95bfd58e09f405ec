"""Help and errors of the command line do not wait for slow imports."""

import subprocess
import sys

import pytest

from vmoe_study.cli.main import COMMANDS

pytestmark = pytest.mark.process

READ_DATA = {"cv2", "grain", "tensorflow_datasets"}
SLOW = {"jax", "matplotlib", "orbax", "sklearn", "tensorflow", *READ_DATA}


def imported(*commands: list[str]) -> set[str]:
  """The slow packages that a process imports to run these commands."""
  code = (
    "import contextlib, io, sys\n"
    "from vmoe_study.cli.main import main\n"
    f"for argv in {commands!r}:\n"
    "  with contextlib.suppress(SystemExit):\n"
    "    with contextlib.redirect_stdout(io.StringIO()):\n"
    "      main(argv)\n"
    f"print(*({SLOW!r} & sys.modules.keys()))\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], check=True, capture_output=True, text=True
  )
  return set(done.stdout.split())


def test_help_imports_nothing_slow():
  commands = [[name, "--help"] for name in COMMANDS if name != "bench"]
  assert imported(["--help"], *commands) == set()


def test_help_of_the_benchmarks_lists_the_routers():
  assert imported(["bench", "layer", "--help"]) <= {"jax"}


@pytest.mark.parametrize(
  "arguments",
  [
    ["--config=configs/digits.py:router=sotf"],
    ["--config=configs/digits.py", "--config.model.moe.router=sotf"],
    ["--config=configs/digits.py", "--config.data.ops=resize(8)|blur"],
  ],
)
def test_a_wrong_config_is_reported_before_data_is_read(arguments, tmp_path):
  workdir = tmp_path / "work"
  found = imported(["train", *arguments, f"--workdir={workdir}"])
  assert found == {"jax"}
  assert not workdir.exists()


@pytest.mark.parametrize("name", ["digits", "digits:1.0.0"])
def test_data_is_opened_without_the_code_of_other_data_sets(
  name, digits_folder
):
  code = (
    "import sys\n"
    "from vmoe_study.data.builders import open_prepared\n"
    f"builder = open_prepared({name!r}, {str(digits_folder)!r})\n"
    "print(builder.info.full_name, *sys.modules)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], check=True, capture_output=True, text=True
  )
  opened, *modules = done.stdout.split()
  assert opened == "digits/1.0.0"
  assert "tensorflow_datasets.image_classification" not in modules
