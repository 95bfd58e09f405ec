"""A step that hangs shows its stacks, once, and the run goes on."""

import contextlib
import time

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
from vmoe_study.training.stalls import StallWatch
from vmoe_study.training.state import TrainState
from vmoe_study.training.steps_ahead import StepsAhead

pytestmark = pytest.mark.slow

LEAST = 0.5


def hang():
  time.sleep(3 * LEAST)


class Batches:
  """Hangs before the first step, when no time is known, and before step 20."""

  wait_seconds = 0.0
  number = 0

  def __next__(self):
    self.number += 1
    if self.number in (1, 20):
      hang_in_the_input()
    return np.zeros(1)


def hang_in_the_input():
  hang()


class Evaluator:
  def run(self, variables, step):
    del variables
    hang_in_an_evaluation()
    yield "test/accuracy", float(step)


def hang_in_an_evaluation():
  hang()


def test_stacks_are_shown_once_of_a_step_that_hangs(tmp_path, caplog):
  stalls = StallWatch(LEAST)
  steps = StepsAhead(
    lambda state, batch: (
      state.replace(step=state.step + 1),
      dict.fromkeys(MUST_BE_FINITE, state.params),
    ),
    TrainState.create(0, jnp.zeros(()), ()),
    CollapseDetector(HealthSpec()),
    lambda *_: None,
    batches_ahead=2,
    finished=stalls.step_finished,
  )
  writer = MetricsWriter(tmp_path, 0)
  hooks = Hooks(
    [Evaluator()],
    lambda *_: None,
    lambda *_: {},
    NeverStop(),
    writer,
    stalls=stalls,
  )
  timetable = Timetable(24, report=5, evaluate=16, save=0)
  _, is_finished = train(steps, Batches(), timetable, hooks)
  writer.close()
  stalls.close()
  assert is_finished
  shown, said = [r.message for r in caplog.records if r.levelname == "WARNING"]
  assert shown.count("in hang_in_the_input") == 1
  assert "Thread MainThread:" in shown
  assert "hang_in_an_evaluation" not in shown
  assert "of the steps before it is 0.0" in said


class NeverStop:
  def __call__(self, step):
    del step
    return False

  def raised(self):
    return contextlib.nullcontext()
