"""Signals and failures: a run ends with a checkpoint of its last step."""

import contextlib
import os
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.training.health import (
  MUST_BE_FINITE,
  CollapseDetector,
  HealthSpec,
)
from vmoe_study.training.loop import Hooks, Timetable, train
from vmoe_study.training.metrics import MetricsWriter
from vmoe_study.training.metrics_file import read_metrics
from vmoe_study.training.preemption import Preemption
from vmoe_study.training.state import TrainState
from vmoe_study.training.steps_ahead import StepsAhead

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Batches:
  wait_seconds = 0.0

  def __init__(self, signals, failing):
    self.number, self.signals, self.failing = 0, signals, failing

  def __next__(self):
    self.number += 1
    if self.number == self.failing:
      fail()
    for number in self.signals.get(self.number, ()):
      os.kill(os.getpid(), number)
    return np.zeros(1)


class Evaluator:
  """Counts the images; may be interrupted, or fail."""

  def __init__(self, actions=None):
    self.runs, self.actions = 0, actions or {}

  def run(self, params, step):
    self.runs += 1
    self.actions.get(self.runs, lambda: None)()
    yield "test/accuracy", float(self.runs)


def interrupt():
  os.kill(os.getpid(), signal.SIGINT)


def fail():
  raise OSError("no such image")


@pytest.fixture
def run(tmp_path):
  """Runs the loop over 9 steps; its result and the steps that were saved."""
  saved = []

  def save(step, state, _):
    assert int(state.step) == step
    saved.append(step)

  def run(signals=None, evaluator=None, start=0, failing=None, **timetable):
    saved.clear()
    steps = StepsAhead(
      lambda s, batch: (
        s.replace(step=s.step + 1),
        dict.fromkeys(MUST_BE_FINITE, s.params),
      ),
      TrainState.create(start, jnp.zeros(()), ()),
      CollapseDetector(HealthSpec()),
      lambda *_: None,
      batches_ahead=2,
    )
    evaluators = [evaluator] if evaluator else []
    timetable = {"report": 2, "evaluate": 0, "save": 4} | timetable
    writer = contextlib.closing(MetricsWriter(tmp_path, start))
    with writer as writer, Preemption() as stop:
      hooks = Hooks(evaluators, save, lambda *_: {}, stop, writer)
      state, is_finished = train(
        steps,
        Batches(signals or {}, failing),
        Timetable(9, **timetable),
        hooks,
      )
    return int(state.step), is_finished

  handlers = [signal.getsignal(number) for number in SIGNALS]
  yield run, saved
  assert [signal.getsignal(number) for number in SIGNALS] == handlers


def evaluated(tmp_path):
  rows = read_metrics(tmp_path)
  return [row["step"] for row in rows if "test/accuracy" in row]


@pytest.mark.parametrize("number", SIGNALS)
def test_stops_after_the_step_with_a_checkpoint(run, number, capfd):
  train, saved = run
  assert train({6: [number]}) == (6, False)
  assert saved == [4, 6]
  said = capfd.readouterr().err
  assert f"{number.name}: saving, then stopping." in said
  assert said.count("\n") == 1


def test_a_second_interrupt_stops_at_once(run):
  train, saved = run
  for first in SIGNALS:
    with pytest.raises(KeyboardInterrupt):
      train({6: [first, signal.SIGINT]})
    assert saved == [4]
  assert train({6: [signal.SIGTERM, signal.SIGTERM]}) == (6, False)


def test_runs_to_the_end_if_nobody_asks(run):
  train, saved = run
  assert train() == (9, True)
  assert saved == [4, 8, 9]


def test_what_is_evaluated_is_saved_before(run, tmp_path):
  train, saved = run
  with pytest.raises(OSError, match="no such image"):
    train(evaluator=Evaluator({2: fail}), evaluate=3)
  assert saved == [3, 4, 6] and evaluated(tmp_path) == [3]
  # The run resumes from step 6, which is evaluated before it goes on.
  known = {"evaluate": 3, "start": 6, "evaluated": 5}
  assert train(evaluator=Evaluator(), **known) == (9, True)
  assert saved == [8, 9] and evaluated(tmp_path) == [3, 6, 9]
  # From step 6 with an evaluation, and from the last step.
  assert train(evaluator=Evaluator(), **known | {"evaluated": 6}) == (9, True)
  assert evaluated(tmp_path) == [3, 6, 9]
  known |= {"start": 9, "evaluated": 8}
  assert train(evaluator=Evaluator(), **known) == (9, True)
  assert saved == []


def test_an_evaluation_is_given_up_if_asked(run, tmp_path):
  train, saved = run
  last = Evaluator({1: interrupt})
  assert train(evaluator=last) == (9, False)
  assert saved == [4, 8, 9] and evaluated(tmp_path) == []
  # At a step that is saved because of a signal, there is no evaluation.
  assert train({9: [signal.SIGTERM]}, Evaluator()) == (9, False)
  assert saved == [4, 8, 9] and evaluated(tmp_path) == []


def test_what_is_trained_is_saved_if_the_next_batch_fails(run):
  train, saved = run
  for start, failing, expected in ((0, 7, [4, 6]), (0, 5, [4]), (6, 1, [])):
    with pytest.raises(OSError, match="no such image"):
      train(start=start, failing=failing)
    assert saved == expected
