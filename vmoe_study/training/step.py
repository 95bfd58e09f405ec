"""The training step: gradient, update, replace.

A step whose loss, gradient or update is not finite changes nothing but
`TrainState.failed`, and a failed state is frozen: later steps leave it as it
is. The program runs a few steps ahead of its devices, so the state that failed
is still available when the program learns of the failure.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vmoe_study.training.state import TrainState

Metrics = dict[str, jax.Array]
LossFn = Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Metrics]]
Gradient = Callable[[Any, Any, Any, jax.Array, jax.Array], tuple[Metrics, Any]]
ROUTER_STATISTICS = "router_statistics"  # A key of the metrics of a loss.


def make_gradient(
  loss_fn: LossFn,
  *,
  augment: Callable[[Any, jax.Array], Any] = lambda batch, key: batch,
  accumulation: int = 1,
  chunk: int = 1,
) -> Gradient:
  """Makes a pure function that computes metrics and gradient of a step.

  Its arguments are parameters, router state, batch, seed and step. Random
  numbers are a function of (seed, step) alone.

  Args:
    loss_fn: maps (params, router state, batch, key) to the mean loss over the
      batch and metrics, among them "loss". If routers have states, the metrics
      contain `ROUTER_STATISTICS`, a tree of means over the batch.
    augment: maps (batch, key) to the batch to train on. It is compiled with the
      step, so its input may take less memory.
    accumulation: number of parts that the batch is split into and computed one
      after another. The result is that of the whole batch, except that each
      part draws its own router noise and dropout.
    chunk: consecutive images that must stay in one part.
  """
  gradient = jax.value_and_grad(loss_fn, has_aux=True)

  def metrics_and_gradient(
    params: Any,
    router_state: Any,
    batch: Any,
    seed: jax.Array,
    step: jax.Array,
  ):
    key = jax.random.fold_in(jax.random.key(seed), step)
    key, augment_key = jax.random.split(key)
    batch = augment(batch, augment_key)
    if accumulation == 1:
      (_, metrics), grads = gradient(params, router_state, batch, key)
      return metrics, grads
    parts = _split(batch, accumulation, chunk)
    part_gradient = functools.partial(gradient, params, router_state)
    return _mean_over(parts, part_gradient, key)

  return metrics_and_gradient


def make_train_step(
  gradient: Gradient,
  optimizer: optax.GradientTransformation,
  update_router_state: Callable[[Any, Any], Any] = lambda state, statistics: (
    state
  ),
  ema_decay: float = 0.0,
) -> Callable[[TrainState, Any], tuple[TrainState, Metrics]]:
  """Makes a pure function from state and batch to the next state and metrics.

  The metrics include those of `step_norms`.

  Args:
    gradient: a function from `make_gradient`.
    optimizer: optimizer of the parameters.
    update_router_state: maps (router state, statistics) to the next router
      state.
    ema_decay: decay of the moving average of the parameters, if the state has
      one: every step replaces it by decay * average + (1 - decay) * parameters.
  """

  def train_step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
    metrics, grads = gradient(
      state.params, state.router_state, batch, state.seed, state.step
    )
    statistics = metrics.pop(ROUTER_STATISTICS, {})
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= step_norms(grads, updates)
    finite = jnp.isfinite(metrics["loss"])
    finite &= jnp.isfinite(metrics["gradient_norm"])
    finite &= jnp.isfinite(metrics["update_norm"])
    succeeded = finite & ~state.failed
    router_state = update_router_state(state.router_state, statistics)
    ema = state.ema and optax.incremental_update(
      params, state.ema, 1.0 - ema_decay
    )
    updated = state.replace(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      failed=~succeeded,
      router_state=router_state,
      ema=ema,
    )
    frozen = state.replace(failed=~succeeded)
    state = jax.tree.map(
      lambda new, old: jnp.where(succeeded, new, old), updated, frozen
    )
    return state, metrics

  return train_step


def step_norms(gradient: Any, updates: Any) -> Metrics:
  """The norms of a step; the step fails if one of them is not finite.

  Returns:
    "gradient_norm", "update_norm", and "gradient_norms" of every tensor in the
    order of `jax.tree.leaves`.
  """
  norms = jnp.stack([optax.tree.norm(g) for g in jax.tree.leaves(gradient)])
  return {
    "gradient_norms": norms,
    "gradient_norm": optax.tree.norm(norms),
    "update_norm": optax.tree.norm(updates),
  }


def _split(batch, parts: int, chunk: int):
  """Splits (B, ...) into (parts, B / parts, ...), taking chunks in turn.

  Every device keeps its own images, so no data is communicated.
  """

  def split(x):
    if x.shape[0] % (parts * chunk):
      raise ValueError(
        f"accumulation={parts}: the batch of {x.shape[0]} must be a multiple "
        f"of accumulation x images per group = {parts * chunk}."
      )
    x = x.reshape(-1, parts, chunk, *x.shape[1:])
    return jnp.moveaxis(x, 1, 0).reshape(parts, -1, *x.shape[3:])

  return jax.tree.map(split, batch)


def _mean_over(parts, gradient, key):
  """Metrics and gradients, averaged over equal parts of the batch."""

  def body(total, part_and_index):
    part, index = part_and_index
    (_, metrics), grads = gradient(part, jax.random.fold_in(key, index))
    return jax.tree.map(jnp.add, total, (metrics, grads)), None

  count = jax.tree.leaves(parts)[0].shape[0]
  first = jax.tree.map(lambda x: x[0], parts)
  shapes = jax.eval_shape(lambda: gradient(first, key))
  (_, metrics), grads = shapes
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (metrics, grads))
  total, _ = jax.lax.scan(body, zeros, (parts, jnp.arange(count)))
  return jax.tree.map(lambda x: x / count, total)
