"""Routers that collapse are told by layer and expert, once, in time."""

import logging

import numpy as np
import pytest

from vmoe_study.training.health import (
  CollapseDetector,
  HealthSpec,
  TrainingFailure,
)

SPEC = HealthSpec(collapse_steps=3, max_unprocessed=0.5)


def metrics(load=(1, 1, 1), unprocessed=0.0):
  return {
    "loss": 0.0,
    "routing/block_0/load": np.ones(2),
    "routing/block_1/load": np.asarray(load, np.float32),
    "routing/block_1/unprocessed": np.float32(unprocessed),
  }


def tell(spec, series, caplog):
  """What is said after which step, and the final metrics."""
  watch, said = CollapseDetector(spec), {}
  for step, values in enumerate(series, 1):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      watch(step, values)
    if caplog.messages:
      said[step] = caplog.messages[0]
  return said, watch.metrics()


@pytest.fixture(autouse=True)
def _absl_logs_reach_pytest(caplog):
  absl = logging.getLogger("absl")
  absl.addHandler(caplog.handler)
  yield
  absl.removeHandler(caplog.handler)


def test_an_unused_expert_is_named_once_per_collapse(caplog):
  idle, fine = metrics((1, 0, 2)), metrics()
  series = [idle, idle, fine, idle, idle, idle, idle, fine, idle, idle, idle]
  said, found = tell(SPEC, series, caplog)
  assert list(said) == [6, 11]
  assert "step 6" in said[6] and "block_1: expert 1 got no token" in said[6]
  assert found == {
    "routing/block_0/unused_experts": 0,
    "routing/block_1/unused_experts": 1,
  }


def test_dropped_tokens_are_told(caplog):
  series = [metrics(unprocessed=share) for share in (0.6, 0.5, 0.6, 0.7, 0.8)]
  said, found = tell(SPEC, series, caplog)
  assert list(said) == [5]
  assert "block_1: 80% of the tokens got no expert" in said[5]
  assert found["routing/block_1/unused_experts"] == 0


def test_a_collapse_may_stop_the_run(caplog):
  stopping = HealthSpec(collapse_steps=3, on_collapse="stop")
  with pytest.raises(TrainingFailure, match=r"step 3: .*experts? 0 got no"):
    tell(stopping, [metrics((0, 1, 1))] * 3, caplog)


def test_nothing_is_watched_at_zero(caplog):
  said, found = tell(
    HealthSpec(collapse_steps=0), [metrics((0, 0, 1), 1.0)] * 5, caplog
  )
  assert not said
  assert found["routing/block_1/unused_experts"] == 0


@pytest.mark.parametrize(
  "values",
  [
    {"collapse_steps": -1},
    {"max_unprocessed": 1.5},
  ],
)
def test_values_that_cannot_be(values):
  with pytest.raises(ValueError, match=next(iter(values))):
    HealthSpec(**values)
