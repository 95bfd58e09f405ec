"""Eight fake devices, fast compilation, shape checks, kinds of tests.

Without a path or `-m`, pytest runs the tests of `DEFAULT`. Their kind is the
folder's in `KINDS`, or what a file says with `pytestmark`.
"""

import atexit
import gc
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest
from jaxtyping import install_import_hook

from vmoe_study.cli.background import without_orbax

from . import devices
from .programs import start_jax
from .shared import make_once

TESTS = pathlib.Path(__file__).parent
DEFAULT = "unit and not slow"
# In the order in which they run: the files that take longest come first.
KINDS = {
  "process": "processes that are started, killed, or work together",
  "device": "programs for several devices, or compiled for TPUs",
  "notebook": "notebooks, each in a kernel",
  "cli": "a command from its arguments to its files, in this process",
  "unit": "one part of the library, in this process",
  "fuzz": "random input to parsers and readers",
}
OF_FOLDER = {
  "cli": "cli",
  "launch": "process",
  "multidevice": "device",
  "multiprocess": "process",
  "notebooks": "notebook",
}
# Folders whose tests see eight devices. Others see one, unless they are marked.
EIGHT_DEVICES = {
  "checkpoint",
  "data",
  "evaluation",
  "multidevice",
  "multiprocess",
  "parallel",
  "performance",
}

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  # All processes of a run of the tests compile a program once. It is theirs
  # alone, so that no run tests what another one compiled.
  _programs = tempfile.mkdtemp(prefix="compiled-")
  atexit.register(shutil.rmtree, _programs, ignore_errors=True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
start_jax(devices=8)
devices.show(1)
install_import_hook("vmoe_study.routing", "beartype.beartype")


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
  """Registers the kinds; selects `DEFAULT` if nothing else is asked for."""
  gc.set_threshold(20_000, 20, 20)  # Tracing makes many objects, few cycles.
  # Reads that Orbax abandons may end in any later test. Commands ignore them.
  sys.unraisablehook = without_orbax(sys.unraisablehook)
  for name, meaning in KINDS.items():
    config.addinivalue_line("markers", f"{name}: {meaning}")
  config.addinivalue_line("markers", "slow: takes longer than the others")
  config.addinivalue_line("markers", "eight_devices: sees them all, not one")
  words = config.invocation_params.args
  asked = any(str(word).startswith(("-m", "-k")) for word in words)
  if not asked and config.args_source is not config.ArgsSource.ARGS:
    config.option.markexpr = DEFAULT


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Gives every test one kind, and sorts the tests by it."""
  kinds = list(KINDS)

  def place(item: pytest.Item) -> int:
    return min(
      kinds.index(m.name) for m in item.iter_markers() if m.name in KINDS
    )

  for item in items:
    if not any(mark.name in KINDS for mark in item.iter_markers()):
      folder = item.path.relative_to(TESTS).parts[0]
      item.add_marker(OF_FOLDER.get(folder, "unit"))
  items.sort(key=place)


@pytest.fixture(scope="module", autouse=True)
def _devices(request: pytest.FixtureRequest) -> Iterator[None]:
  """Shows all devices to a file that is marked, or in a marked folder."""
  folder = request.path.relative_to(TESTS).parts[0]
  marked = request.node.get_closest_marker("eight_devices")
  with devices.shown(8 if marked or folder in EIGHT_DEVICES else 1):
    yield


@pytest.fixture
def eight_devices() -> Iterator[None]:
  """Shows all devices to one test."""
  with devices.shown(8):
    yield


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A TFDS folder that holds `digits`."""
  from vmoe_study.data import builders

  def make(folder: pathlib.Path) -> None:
    builders.prepare("digits", str(folder))

  return make_once(tmp_path_factory, "digits", make)


@pytest.fixture(scope="session")
def trained(
  digits_folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
  """The workdir of a run on eight devices, evaluated at capacity 0.5.

  Nothing may be written to it.
  """
  from vmoe_study.cli.main import main

  data = {
    f"--config.{where}.data_dir={digits_folder}"
    for where in (
      "data",
      "evaluations.test.data",
      "fewshot.digits.train",
      "fewshot.digits.test",
    )
  }
  options = [
    "--config=configs/digits.py:router=softmax_token_choice,k=2",
    "--config.model.fields.width=16",
    "--config.model.fields.depth=2",
    "--config.model.fields.mlp_dim=32",
    "--config.model.moe.options.num_experts=4",
    "--config.train.num_epochs=0",
    "--config.train.num_steps=32",
    "--config.train.schedule.warmup_steps=2",
    "--config.train.schedule.peak=0.01",
    "--config.train.report_every=8",
    "--config.shots=(1,)",
    "--config.mesh.expert=4",
    "--config.evaluation_capacity=0.5",
  ]

  def make(workdir: pathlib.Path) -> None:
    with devices.shown(8):
      assert main(["train", f"--workdir={workdir}", *options, *data]) == 0

  return make_once(tmp_path_factory, "trained", make)
