"""The public names: what importing them costs, and that their examples run."""

import doctest
import importlib
import pathlib
import subprocess
import sys

import jaxtyping
import pytest

import vmoe_study

ROOT = pathlib.Path(vmoe_study.__file__).parent
# Their examples use one run, in this order: train makes it.
OF_A_RUN = [
  "run.config_file",
  "run.train",
  "run.checkpoint",
  "run.evaluate",
  "inspection.inspect",
  "inspection.comparison",
]


@pytest.fixture(autouse=True)
def _unchecked(monkeypatch):
  """Users run without the shape checks of the tests."""
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def modules_with_examples():
  for path in sorted(ROOT.rglob("*.py")):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if ">>> " in path.read_text() and name not in OF_A_RUN:
      yield name


def run_examples(name):
  parent = "" if name == "__init__" else f".{name}"
  module = importlib.import_module(f"vmoe_study{parent}")
  result = doctest.testmod(module)
  assert result.attempted and not result.failed


@pytest.mark.slow
@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples(name):
  run_examples(name)


@pytest.mark.cli
@pytest.mark.slow
def test_examples_of_a_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in OF_A_RUN:
    run_examples(name)


@pytest.mark.parametrize("name", vmoe_study.__all__)
def test_public_names_are_documented(name):
  found = getattr(vmoe_study, name)
  assert name in dir(vmoe_study)
  if callable(found):
    assert found.__doc__ and found.__doc__.strip()


def test_an_unknown_name_lists_the_known_ones():
  with pytest.raises(AttributeError, match="Public names: .*open_checkpoint"):
    vmoe_study.open_checkpont  # noqa: B018


def test_importing_the_package_imports_nothing_slow():
  code = (
    "import sys, vmoe_study; slow = {'jax', 'numpy', 'flax', 'tensorflow'};"
    "assert not slow & {*sys.modules}, slow & {*sys.modules}"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
