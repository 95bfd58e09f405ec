"""Commands that are asked to stop before they have anything to save."""

import gc
import os
import signal
import subprocess
import sys

import pytest

from vmoe_study.cli import config_flags
from vmoe_study.cli.main import main
from vmoe_study.training.stop_signals import handled_by

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WORDS = ["train", "--config=configs/digits.py"]


def ask_in_callback(number):
  """Sends a signal where exceptions are ignored."""

  def ask(phase, info):
    gc.callbacks.remove(ask)
    os.kill(os.getpid(), number)

  gc.callbacks.append(ask)
  gc.collect()
  with handled_by({}):
    pytest.fail("the request got lost")


def ask_as_library(number):
  """Sends a signal where a library makes another error of the exception."""
  try:
    os.kill(os.getpid(), number)
  except KeyboardInterrupt as error:
    raise ImportError("numpy.core.multiarray failed to import") from error


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("ask", [ask_in_callback, ask_as_library])
def test_start_up(number, ask, tmp_path, monkeypatch, capfd):
  handlers = [signal.getsignal(number) for number in SIGNALS]
  monkeypatch.setattr(config_flags, "load", lambda args: ask(number))
  words = [*WORDS, f"--workdir={tmp_path}"]
  assert main(words) == 75
  said = capfd.readouterr().err
  assert said == "Stopped before there was anything to save. Run it again.\n"
  assert [signal.getsignal(number) for number in SIGNALS] == handlers


@pytest.mark.process
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("command", ["train", "report"])
def test_before_the_commands_are_imported(command, number):
  code = f"""
import builtins, os, sys
from vmoe_study import __main__
original = builtins.__import__
def ask(name, *rest):
  if name.startswith("vmoe_study.cli"):
    os.kill(os.getpid(), {int(number)})
  return original(name, *rest)
builtins.__import__ = ask
sys.argv = ["vmoe-study", "{command}"]
__main__.main()
"""
  words = [sys.executable, "-c", code]
  done = subprocess.run(words, capture_output=True, text=True)
  if command == "train":
    assert done.returncode == 75
    assert done.stderr.startswith("Stopped before there was anything to save.")
  else:
    assert done.returncode != 75


def test_ctrl_c_in_other_commands(monkeypatch, capfd):
  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr("vmoe_study.study.results.load", interrupt)
  assert main(["report", "runs"]) == 130
  assert capfd.readouterr().err == "Interrupted.\n"
