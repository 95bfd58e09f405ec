"""The step: accumulation equals the large batch, noise is (seed, step)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vmoe_study.training.state import TrainState
from vmoe_study.training.step import (
  ROUTER_STATISTICS,
  make_gradient,
  make_train_step,
)

PARAMS = {"w": jnp.array([1.0, -1.0])}
BATCH = {"x": jnp.arange(16.0).reshape(8, 2) / 10}


def loss_fn(params, router_state, batch, key):
  del key
  # Rows in pairs, as groups of two images: they must stay together.
  pairs = (batch["x"] @ params["w"]).reshape(-1, 2)
  loss = jnp.mean(pairs[:, 0] * pairs[:, 1])
  return loss, {"loss": loss}


def noisy_loss_fn(params, router_state, batch, key):
  noise = jax.random.normal(key, ())
  loss = (
    loss_fn(params, router_state, batch, key)[0] + noise * params["w"].sum()
  )
  return loss, {"loss": loss, "noise": noise}


SGD = optax.sgd(0.1)


@functools.cache
def make_step(loss, **options):
  return jax.jit(make_train_step(make_gradient(loss, **options), SGD))


def run(loss, steps=2, seed=0, **options):
  step = make_step(loss, **options)
  state = TrainState.create(0, PARAMS, SGD.init(PARAMS), seed=seed)
  history = []
  for _ in range(steps):
    state, metrics = step(state, BATCH)
    history.append(metrics)
  return state, history


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_large_batch(parts):
  whole, whole_metrics = run(loss_fn)
  split, metrics = run(loss_fn, accumulation=parts, chunk=2)
  np.testing.assert_allclose(split.params["w"], whole.params["w"], rtol=1e-6)
  for name in ("loss", "gradient_norm"):
    np.testing.assert_allclose(
      metrics[-1][name], whole_metrics[-1][name], rtol=1e-5
    )


def test_accumulation_that_does_not_divide_is_an_error():
  with pytest.raises(ValueError, match="batch of 8.*= 6"):
    run(loss_fn, accumulation=3, chunk=2)


def test_noise_depends_on_seed_and_step_alone():
  _, first = run(noisy_loss_fn, seed=0)
  _, again = run(noisy_loss_fn, seed=0)
  _, other = run(noisy_loss_fn, seed=1)
  noise = [float(metrics["noise"]) for metrics in (*first, *other)]
  assert len(set(noise)) == 4
  assert [float(metrics["noise"]) for metrics in again] == noise[:2]


def test_noise_is_that_of_the_key_of_the_seed():
  """Also of a seed that no int32 holds."""
  for seed in (3, 2**32 - 1):
    _, history = run(noisy_loss_fn, seed=seed)
    for step, metrics in enumerate(history):
      key = jax.random.fold_in(jax.random.key(seed), step)
      noise = jax.random.normal(jax.random.split(key)[0], ())
      np.testing.assert_array_equal(metrics["noise"], noise)


def test_norms_of_tensors_and_of_all():
  _, (metrics, *_) = run(loss_fn)
  grads = jax.grad(lambda p: loss_fn(p, {}, BATCH, None)[0])(PARAMS)
  expected = [np.linalg.norm(g) for g in jax.tree.leaves(grads)]
  np.testing.assert_allclose(metrics["gradient_norms"], expected, rtol=1e-6)
  np.testing.assert_allclose(
    metrics["gradient_norm"], np.linalg.norm(expected), rtol=1e-6
  )


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_step_that_is_not_finite_freezes_the_state(bad):
  """Of 1e30 the loss overflows."""
  optimizer = optax.adam(0.1)
  step = jax.jit(make_train_step(make_gradient(loss_fn), optimizer))
  start = TrainState.create(0, PARAMS, optimizer.init(PARAMS))
  before, _ = step(start, BATCH)
  state, _ = step(before, {"x": BATCH["x"].at[3, 1].set(bad)})
  for _ in range(2):  # Later steps do not change it either.
    assert state.failed and int(state.step) == 1
    same = before.replace(failed=state.failed)
    jax.tree.map(np.testing.assert_array_equal, state, same)
    state, _ = step(state, BATCH)
  after, _ = step(state.replace(failed=jnp.asarray(False)), BATCH)
  assert int(after.step) == 2 and not after.failed
  assert np.all(after.params["w"] != before.params["w"])


def _counting_loss(params, router_state, batch, key):
  """A loss whose statistics are the mean of the batch."""
  loss, metrics = loss_fn(params, router_state, batch, key)
  return loss, {**metrics, ROUTER_STATISTICS: {"mean": batch["x"].mean()}}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_router_state_moves_by_the_mean_of_the_whole_batch(accumulation):
  optimizer = optax.sgd(0.1)
  gradient = make_gradient(_counting_loss, accumulation=accumulation, chunk=2)
  step = make_train_step(
    gradient, optimizer, lambda old, found: {"sum": old["sum"] + found["mean"]}
  )
  start = {"sum": jnp.float32(2.0)}
  state = TrainState.create(0, PARAMS, optimizer.init(PARAMS), start)
  state, metrics = jax.jit(step)(state, BATCH)
  expected = 2.0 + np.mean(BATCH["x"])
  np.testing.assert_allclose(state.router_state["sum"], expected, rtol=1e-6)
  assert ROUTER_STATISTICS not in metrics
  broken = jax.tree.map(lambda x: x * np.nan, BATCH)
  failed, _ = jax.jit(step)(state, broken)
  assert failed.failed
  np.testing.assert_array_equal(
    failed.router_state["sum"], state.router_state["sum"]
  )
