"""Commands that are asked to stop before they have anything to save."""

import gc
import os
import signal

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


def test_ctrl_c_in_other_commands(monkeypatch, capfd):
  def interrupt(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr("vmoe_study.study.results.load", interrupt)
  assert main(["report", "runs"]) == 130
  assert capfd.readouterr().err == "Interrupted.\n"
