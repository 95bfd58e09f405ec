"""Benchmark of a config's whole training step on this machine."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from vmoe_study.config import Config
from vmoe_study.nn.cost import training_flops
from vmoe_study.parallel import sharding
from vmoe_study.performance.timing import interleaved_seconds, paired_ratio
from vmoe_study.run.experiment import Model, Training
from vmoe_study.run.inputs import open_train_input, to_devices

MATMUL_SIZE = 2048


def bench_step(config: Config, rounds: int) -> dict[str, float]:
  """Times the step, its parts, and a matrix product of the same dtype.

  Args:
    config: config of the run.
    rounds: number of timings of each.

  Returns:
    Speed, FLOPs and their utilisation, compile time, and the shares of forward
    pass, backward pass and update in the step. The utilisation is relative to
    the matrix product.

  Raises:
    MissingDataError: the data set is not prepared.
  """
  data = open_train_input(config)
  model = Model(config, data.image_shape)
  training = Training(model, data.num_examples)
  batch = sharding.to_global(model.mesh, data[0])
  state = training.init()
  # The step donates its state.
  copies = jax.tree.map(jnp.copy, (state.params, state.router_state))

  logging.info("compiling the step")
  start = time.perf_counter()
  step = training.step.lower(state, batch).compile()
  compile_seconds = time.perf_counter() - start
  logging.info(
    "compiled in %.0f s; timing the step and its parts", compile_seconds
  )

  def run_step():
    nonlocal state
    state, metrics = step(state, batch)
    return metrics

  prepared = to_devices(model.mesh, data.device_ops, data[0])
  seconds = interleaved_seconds(
    {**_parts(model, copies, prepared), "step": run_step}, rounds
  )
  median = {name: float(np.median(s)) for name, s in seconds.items()}
  size = config.train.batch_size
  flops = size * training_flops(model.module, data.image_shape)
  peak = model.mesh.size * 2 * MATMUL_SIZE**3 / median["matmul"]
  forward = paired_ratio(seconds, "forward", "step")
  gradient = paired_ratio(seconds, "gradient", "step")
  return {
    "images_per_second": size / median["step"],
    "step_ms": 1e3 * median["step"],
    "compile_seconds": compile_seconds,
    "model_flops": flops,
    "model_flops_per_second": flops / median["step"],
    "matmul_flops_per_second": peak,
    "model_flops_utilisation": flops / median["step"] / peak,
    "share_forward": forward,
    "share_backward": gradient - forward,
    "share_update": 1 - gradient,
  }


def _parts(
  model: Model, state: tuple[Any, Any], batch: Any
) -> dict[str, Callable[[], Any]]:
  """Forward pass, forward and backward pass, and the matrix product."""
  key = jax.random.key(0)
  forward = jax.jit(model.loss)
  gradient = jax.jit(jax.value_and_grad(model.loss, has_aux=True))
  matrix = jnp.ones((MATMUL_SIZE, MATMUL_SIZE), model.module.dtype)
  product = jax.jit(jnp.matmul)
  return {
    "forward": lambda: forward(*state, batch, key),
    "gradient": lambda: gradient(*state, batch, key),
    "matmul": lambda: product(matrix, matrix),
  }
