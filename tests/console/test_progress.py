"""Bars on a terminal, lines elsewhere, and nothing on standard output."""

import io
import math
import re
import sys

import pytest
from absl import logging

from vmoe_study.console import progress as progress_lib
from vmoe_study.console.progress import Progress, track, waiting
from vmoe_study.run.log_setup import log_progress


class Clock:
  """A time that stands still."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(progress_lib.time, "monotonic", clock)
  return clock


class Terminal(io.StringIO):
  def isatty(self):
    return True


def use_terminal(monkeypatch):
  """Makes it standard error; in a fixture, pytest would undo that."""
  terminal = Terminal()
  monkeypatch.setattr(sys, "stderr", terminal)
  handler = logging.get_absl_handler().python_handler
  monkeypatch.setattr(handler, "stream", terminal)
  log_progress()
  return terminal


def test_lines_have_count_rate_and_time_to_go(clock, caplog):
  caplog.set_level("INFO", logger="absl")
  with Progress("reading", 5000, "images", start=1000) as progress:
    for _ in range(6):
      clock.now += 4.0
      progress.advance(500, note="loss 0.5")
  assert caplog.messages == [
    "reading: 2,500 of 5,000 images, 125 images/s, ETA 0:00:20, loss 0.5",
    "reading: 4,000 of 5,000 images, 125 images/s, ETA 0:00:08, loss 0.5",
  ]


def test_short_work_and_work_that_reports_itself_log_nothing(clock, caplog):
  caplog.set_level("INFO", logger="absl")
  assert list(track(iter("abc"), "reading", None, "letters")) == ["a", "b", "c"]
  with Progress("training", 10, "steps", every=math.inf) as progress:
    clock.now += 100.0
    progress.advance()
  assert not caplog.messages


def test_waiting_tells_that_it_goes_on(monkeypatch, caplog):
  caplog.set_level("INFO", logger="absl")
  monkeypatch.setattr(progress_lib, "SECONDS", 0.01)
  with waiting("compiling"):
    while len(caplog.messages) < 2:
      pass
  assert re.fullmatch(r"compiling: \d+ s", caplog.messages[0])


def test_a_terminal_has_a_bar_and_whole_lines(monkeypatch, capsys):
  terminal = use_terminal(monkeypatch)
  with Progress("reading", 4, "images") as progress:
    progress.advance(2, note="loss 0.5")
    progress.advance(0)
    logging.warning("a line of %s", "its own")
    progress.advance(2)
  shown = terminal.getvalue()
  assert re.search(r"reading:  50%\|.* 2/4 .*loss 0.5", shown)
  # The bar is gone where the line begins, and at the end.
  before, _, after = shown.partition("a line of its own\n")
  assert re.fullmatch(r"\d\d:\d\d:\d\d ", before.rpartition("\r")[2])
  assert not after.rpartition("\r")[2].strip()
  assert not logging.get_absl_handler().filters[1:]
  assert capsys.readouterr().out == ""
