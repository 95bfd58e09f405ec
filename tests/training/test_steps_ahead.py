"""Steps that fail are noticed late, and dealt with as if at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vmoe_study.training.health import TrainingFailure
from vmoe_study.training.state import TrainState
from vmoe_study.training.step import make_gradient, make_train_step
from vmoe_study.training.steps_ahead import StepsAhead

OPTIMIZER = optax.adam(0.1)
STEPS = 25
BATCHES_AHEAD = 8


def loss_fn(params, router_state, batch, key):
  noise = jax.random.normal(key, ())
  loss = jnp.sum((params["w"] - batch) ** 2) + noise * params["w"].sum()
  return loss, {"loss": loss}


@functools.cache
def compiled():
  gradient = make_gradient(loss_fn)
  return jax.jit(make_train_step(gradient, OPTIMIZER), donate_argnums=0)


def start():
  params = {"w": jnp.arange(3.0)}
  return TrainState.create(0, params, OPTIMIZER.init(params))


def batch(step, bad):
  value = np.nan if step in bad else np.sin(step)
  return jnp.full((3,), value, jnp.float32)


def run(bad, settle_at, on_failure):
  seen = []
  ahead = StepsAhead(
    compiled(),
    start(),
    lambda n, _: seen.append(n),
    on_failure,
    BATCHES_AHEAD,
  )
  for step in range(STEPS):
    ahead.run(step, batch(step, bad))
    if step in settle_at:
      ahead.wait()
  ahead.wait()
  assert ahead.skipped == len(bad)
  return ahead.state, seen


@pytest.mark.parametrize(
  "bad", [(), (0,), (4,), (4, 5, 9), (3, 3 + BATCHES_AHEAD), (STEPS - 1,)]
)
@pytest.mark.parametrize("settle_at", [(), (5, 6, 20)])
def test_a_skipped_step_is_left_out_and_no_other(bad, settle_at):
  failures = {}

  def on_failure(step, state, batch, metrics):
    assert np.isnan(batch).all() and np.isnan(metrics["loss"])
    failures[step] = jax.device_get(state)

  state, seen = run(bad, settle_at, on_failure)

  expected = start()  # One step after the other, without the bad batches.
  for step in range(STEPS):
    if step in bad:
      jax.tree.map(np.testing.assert_array_equal, failures[step], expected)
      expected = expected.replace(step=jnp.int32(step + 1))
    else:
      expected, _ = compiled()(expected, batch(step, ()))
  jax.tree.map(np.testing.assert_array_equal, state, expected)
  assert tuple(failures) == bad
  assert seen == [step + 1 for step in range(STEPS) if step not in bad]


def test_a_run_stops_with_the_state_before_the_failure():
  def stop(step, state, *_):
    raise TrainingFailure(int(state.step), np.array(state.params["w"]))

  with pytest.raises(TrainingFailure) as error:
    run((7,), (), stop)
  expected = start()
  for step in range(7):
    expected, _ = compiled()(expected, batch(step, ()))
  step, found = error.value.args
  assert step == 7
  np.testing.assert_array_equal(found, expected.params["w"])
