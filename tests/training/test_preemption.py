"""A SIGTERM ends a run after its step, with a checkpoint of that step."""

import os
import signal

import jax.numpy as jnp
import numpy as np

from vmoe_study.training.ahead import StepsAhead
from vmoe_study.training.health import MUST_BE_FINITE, HealthSpec, RouterWatch
from vmoe_study.training.loop import Hooks, Timetable, train
from vmoe_study.training.metrics import MetricsWriter
from vmoe_study.training.preemption import Preemption
from vmoe_study.training.state import TrainState


class Batches:
  wait_seconds = 0.0

  def __init__(self, preempted_at):
    self.number, self.preempted_at = 0, preempted_at

  def __next__(self):
    self.number += 1
    if self.number == self.preempted_at:
      os.kill(os.getpid(), signal.SIGTERM)
    return np.zeros(1)


def run(tmp_path, preempted_at):
  saved = []
  steps = StepsAhead(
    lambda s, batch: (
      s.replace(step=s.step + 1),
      dict.fromkeys(MUST_BE_FINITE, s.params),
    ),
    TrainState.create(0, jnp.zeros(()), ()),
    RouterWatch(HealthSpec()),
    lambda *_: None,
  )
  handler = signal.getsignal(signal.SIGTERM)
  with Preemption() as stop:
    hooks = Hooks(
      evaluators=[],
      save=lambda step, state, _: saved.append((step, int(state.step))),
      stop=stop,
      writer=MetricsWriter(tmp_path),
    )
    timetable = Timetable(num_steps=9, report=2, evaluate=0, save=4)
    state = train(steps, Batches(preempted_at), timetable, hooks)
    hooks.writer.close()
  assert signal.getsignal(signal.SIGTERM) == handler
  return int(state.step), saved


def test_stops_after_the_step_with_a_checkpoint(tmp_path):
  assert run(tmp_path, preempted_at=6) == (6, [(4, 4), (6, 6)])


def test_runs_to_the_end_if_nobody_asks(tmp_path):
  assert run(tmp_path, preempted_at=99) == (9, [(4, 4), (8, 8), (9, 9)])
