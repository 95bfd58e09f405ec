"""One word, one thing: names mean the same in every room.

plan     the two routing tensors of a group; what the command `plan` prints is
         a resource estimate, what a sweep holds its manifest
recipe   a training recipe in configs/; a row of ROUTERS is a RouterSpec, and
         how a data set is read a DatasetSpec
record   one record of a data file; the dict beside a checkpoint is metadata
finding  a result of doctor; the study has contrasts
dense    the model without routed blocks, not a router
batch    what a step consumes; an iterator of them is a BatchStream
"""

import argparse
import ast
import importlib
import pathlib
import re

import pytest

from vmoe_study.cli.bench import KINDS
from vmoe_study.cli.main import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "vmoe_study"
# Pattern of identifiers -> rooms, files or names that may use it.
PLACES = {
  r"(^|_)recipes?(_|$)|Recipe": ("configs/",),
  r"(^|_)records?(_|$)|Record": (
    "vmoe_study/data/",
    "LogRecord",  # Of the standard library.
    "RecordWriter",  # Of TensorBoard.
  ),
  r"(^|_)findings?(_|$)|Finding": ("vmoe_study/doctor/", "cli/doctor.py"),
  r"^(_?write|_?read|_)?plan$|Plan($|[A-Z])": (
    "vmoe_study/routing/",
    "vmoe_study/nn/",
    "vmoe_study/inspection/",
    "vmoe_study/performance/",
    "vmoe_study/cli/plan.py",
    "vmoe_study/__init__.py",
  ),
  r"^Batches$|^Loader$|DataLoader": (),
  r"DenseRouter": (),
}


def sources():
  for folder in ("vmoe_study", "configs"):
    yield from sorted((ROOT / folder).rglob("*.py"))


def identifiers(path):
  """Names that a file defines, imports or uses, but no text."""
  for node in ast.walk(ast.parse(path.read_text())):
    for field in ("id", "attr", "arg", "name", "asname"):
      value = getattr(node, field, None)
      if isinstance(value, str):
        yield from value.split(".")


@pytest.mark.parametrize("pattern", PLACES)
def test_words_are_used_in_their_rooms_only(pattern):
  wrong = [
    f"{path.relative_to(ROOT)}: {name}"
    for path in sources()
    for name in sorted(set(identifiers(path)))
    if re.search(pattern, name)
    and not any(place in f"{path} {name}" for place in PLACES[pattern])
  ]
  assert not wrong


def options(parser: argparse.ArgumentParser):
  return [word for action in parser._actions for word in action.option_strings]


@pytest.mark.parametrize("command", [*COMMANDS, *KINDS])
def test_options_are_written_with_dashes(command):
  name = COMMANDS[command][0] if command in COMMANDS else f"bench_{command}"
  parser = argparse.ArgumentParser(add_help=False)
  importlib.import_module(f"vmoe_study.cli.{name}").add_arguments(parser)
  for option in options(parser):
    assert re.fullmatch(r"--[a-z]+(-[a-z]+)*", option), option
