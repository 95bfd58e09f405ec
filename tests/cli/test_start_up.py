"""Help and errors of the command line do not wait for slow imports."""

import subprocess
import sys

import pytest

from vmoe_study.cli.main import COMMANDS

pytestmark = pytest.mark.process

READ_DATA = {"cv2", "grain", "tensorflow_datasets"}
SLOW = {"jax", "matplotlib", "orbax", "sklearn", "tensorflow", *READ_DATA}


HELP = ["--help", *(f"{name} --help" for name in COMMANDS if name != "bench")]
BENCH = "bench layer --help"
WRONG = [
  "--config=configs/digits.py:router=sotf",
  "--config=configs/digits.py --config.model.moe.router=sotf",
  "--config=configs/digits.py --config.data.ops=resize(8)|blur",
]


def lines(code: str) -> list[str]:
  """What a process prints."""
  done = subprocess.run(
    [sys.executable, "-c", code], check=True, capture_output=True, text=True
  )
  return done.stdout.splitlines()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp("runs") / "work"


@pytest.fixture(scope="module")
def imported(workdir):
  """The slow packages that a process has imported after each command."""
  commands = [*HELP, BENCH]
  commands += [f"train --workdir={workdir} {words}" for words in WRONG]
  code = (
    "import contextlib, io, sys\n"
    "from vmoe_study.cli.main import main\n"
    f"for command in {commands!r}:\n"
    "  with contextlib.suppress(SystemExit):\n"
    "    with contextlib.redirect_stdout(io.StringIO()):\n"
    "      main(command.split())\n"
    f"  print(*({SLOW!r} & sys.modules.keys()))\n"
  )
  found = [set(line.split()) for line in lines(code)]
  return dict(zip([*HELP, BENCH, *WRONG], found, strict=True))


def test_help_imports_nothing_slow(imported):
  assert {name: imported[name] for name in HELP if imported[name]} == {}


def test_help_of_the_benchmarks_lists_the_routers(imported):
  assert imported[BENCH] <= {"jax"}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_config_is_reported_before_data_is_read(
  words, imported, workdir
):
  assert imported[words] == {"jax"}
  assert not workdir.exists()


def test_data_is_opened_without_the_code_of_other_data_sets(digits_folder):
  code = (
    "import sys\n"
    "from vmoe_study.data.builders import open_prepared\n"
    "for name in ('digits', 'digits:1.0.0'):\n"
    f"  builder = open_prepared(name, {str(digits_folder)!r})\n"
    "  print(builder.info.full_name, *sys.modules)\n"
  )
  found = [line.split() for line in lines(code)]
  assert len(found) == 2
  for opened, *modules in found:
    assert opened == "digits/1.0.0"
    assert "tensorflow_datasets.image_classification" not in modules
