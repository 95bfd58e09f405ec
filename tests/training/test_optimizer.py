"""Optimizers and schedules against their formulas."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vmoe_study.training import optax_names
from vmoe_study.training.optimizer import (
  OptimizerSpec,
  ScheduleSpec,
  make_optimizer,
  make_schedule,
)

# Of one shape: operations are compiled for each.
PARAMS = {
  "head": {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([3.0, 0.5])},
  "body": {"kernel": jnp.array([4.0, -1.0])},
}
# Optimizers of Optax that decay weights by themselves.
NO_DECAY = {"lion": {"weight_decay": 0.0}}
GRADS = jax.tree.map(lambda x: 0.1 * x + 0.3, PARAMS)


def run(spec, steps=3, rate=0.01):
  optimizer = make_optimizer(spec, lambda step: rate, PARAMS)
  params, state = PARAMS, optimizer.init(PARAMS)
  for _ in range(steps):
    updates, state = optimizer.update(GRADS, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  return params, state


def test_adam_with_decay_by_path():
  rules = (("head/kernel$", 3.0), ("kernel$", 0.03))
  found, _ = run(OptimizerSpec(weight_decay=rules))
  for path, decay in {
    "head/kernel": 3.0,
    "head/bias": 0,
    "body/kernel": 0.03,
  }.items():
    room, name = path.split("/")
    p = np.asarray(PARAMS[room][name], np.float64)
    g = np.asarray(GRADS[room][name], np.float64)
    m = v = 0
    for step in range(1, 4):
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
      m_hat, v_hat = m / (1 - 0.9**step), v / (1 - 0.999**step)
      p = p - 0.01 * (m_hat / (np.sqrt(v_hat) + 1e-8) + decay * p)
    np.testing.assert_allclose(found[room][name], p, rtol=1e-5)


def test_sgd_momentum_and_clipping():
  norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(GRADS)))
  found, _ = run(OptimizerSpec("sgd", momentum=0.9, clip_norm=norm / 2), 2)
  g = np.asarray(GRADS["body"]["kernel"]) / 2
  expected = np.asarray(PARAMS["body"]["kernel"]) - 0.01 * (g + 1.9 * g)
  np.testing.assert_allclose(found["body"]["kernel"], expected, rtol=1e-5)


def test_first_moment_in_bfloat16():
  _, state = run(OptimizerSpec(moment_dtype="bfloat16"), 1)
  dtypes = {x.dtype.name for x in jax.tree.leaves(state) if x.ndim}
  assert dtypes == {"bfloat16", "float32"}


@pytest.mark.parametrize("name", optax_names.NAMES)
def test_an_optimizer_of_optax_with_decay_by_path(name):
  """Equal to Optax's, and the decay that is not Optax's."""
  spec = OptimizerSpec(name, weight_decay=(("kernel$", 0.5),))
  found, _ = run(spec, 2)
  optimizer = getattr(optax, name)(0.01, **NO_DECAY.get(name, {}))
  params, state = PARAMS, optimizer.init(PARAMS)
  for _ in range(2):
    updates, state = optimizer.update(GRADS, state, params)
    params = {
      room: {
        key: p * (1 - 0.01 * 0.5 * (key == "kernel")) + updates[room][key]
        for key, p in leaves.items()
      }
      for room, leaves in params.items()
    }
  jax.tree.map(
    lambda f, e: np.testing.assert_allclose(f, e, rtol=1e-6), found, params
  )
  assert np.any(found["body"]["kernel"] != PARAMS["body"]["kernel"])


def test_arguments_and_schedule_reach_optax():
  spec = OptimizerSpec("lion", {"b1": 0.5, "mu_dtype": "bfloat16"})
  optimizer = make_optimizer(spec, lambda step: 0.1 * (step + 1), PARAMS)
  state = optimizer.init(PARAMS)
  assert {x.dtype.name for x in jax.tree.leaves(state) if x.ndim} == {
    "bfloat16"
  }
  for step in range(2):  # Lion steps by the learning rate.
    updates, state = optimizer.update(GRADS, state, PARAMS)
    for update in jax.tree.leaves(updates):
      np.testing.assert_allclose(np.abs(update), 0.1 * (step + 1), rtol=1e-6)


@pytest.mark.parametrize(
  ("values", "reason"),
  [
    ({"name": "adafacter"}, "Did you mean 'adafactor'?"),
    ({"name": "adamw"}, "Did you mean 'adam'?"),
    ({"name": "lion", "arguments": {"b": 0.9}}, "Did you mean 'b"),
    ({"name": "lion", "arguments": {"weight_decay": 0.1}}, "unknown name"),
    ({"name": "lion", "arguments": {"b1": "high"}}, "arguments.b1='high'"),
    ({"name": "lion", "arguments": {"mu_dtype": "f99"}}, "optax.lion does not"),
    ({"name": "lion", "beta1": 0.5}, "arguments for optax.lion instead: b1"),
    ({"name": "adam", "arguments": {"b1": 0.9}}, "unknown name 'b1'"),
  ],
)
def test_names_and_arguments_are_checked(values, reason):
  with pytest.raises(ValueError, match="name|arguments") as error:
    OptimizerSpec(**values)
  assert reason in str(error.value)


def test_a_decay_pattern_that_matches_nothing_is_an_error():
  with pytest.raises(ValueError, match="'tail': must match a parameter"):
    run(OptimizerSpec(weight_decay=(("tail", 0.1),)))


SCHEDULES = {
  "linear": lambda s: 0.1 + 0.9 * (1 - s / 80),
  "cosine": lambda s: 0.1 + 0.9 * (1 + np.cos(np.pi * s / 80)) / 2,
  "rsqrt": lambda s: np.sqrt(50 / (50 + s)),
  "constant": lambda s: 1.0,
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
  spec = ScheduleSpec(name, 1.0, 0.1, 20, timescale=50)
  schedule = make_schedule(spec, 100)
  assert schedule(0) == 0 and float(schedule(10)) <= 0.5
  for step in (20, 50, 99):
    expected = SCHEDULES[name](step - 20)
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5)


def test_cooldown_ends_at_zero():
  """The decay stops where it begins, or goes on under it."""
  freeze = ScheduleSpec("rsqrt", 2.0, timescale=50, cooldown_steps=40)
  multiply = dataclasses.replace(freeze, cooldown="multiply")
  full = make_schedule(ScheduleSpec("rsqrt", 2.0, timescale=50), 100)
  for spec, decayed in ((freeze, full(60)), (multiply, full(80))):
    schedule = make_schedule(spec, 100)
    assert float(schedule(100)) == 0.0
    np.testing.assert_allclose(schedule(80), decayed / 2, rtol=1e-6)
    np.testing.assert_allclose(schedule(60), full(60), rtol=1e-6)


def test_edges_longer_than_the_run_are_an_error():
  spec = ScheduleSpec(warmup_steps=30, cooldown_steps=30)
  with pytest.raises(ValueError, match="must fit into 50 steps") as error:
    make_schedule(spec, 50)
  flags = re.findall(
    r"--config\.train\.schedule\.(\w+)=(\d+)", str(error.value)
  )
  assert len(flags) == 2
  shorter = {name: int(steps) for name, steps in flags}
  make_schedule(dataclasses.replace(spec, **shorter), 50)


@pytest.mark.parametrize(
  "values",
  [{"beta1": 1.0}, {"clip_norm": -1.0}, {"weight_decay": (("(", 0.1),)}],
)
def test_values_outside_their_domain(values):
  with pytest.raises(ValueError, match=next(iter(values))):
    OptimizerSpec(**values)
