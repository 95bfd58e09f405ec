"""`bench step`: the whole training step of a config, on this machine."""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from vmoe_study.cli import config_flags
from vmoe_study.config import Config, parse
from vmoe_study.nn.cost import training_flops
from vmoe_study.parallel import sharding
from vmoe_study.performance.timing import interleaved_seconds
from vmoe_study.run.experiment import Model, Training, open_train_input
from vmoe_study.study.render import markdown_table

HELP = "time a config's training step: images/s, FLOPs utilisation, compilation"
MATMUL_SIZE = 2048


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_config(parser)
  parser.add_argument("--rounds", type=int, default=10, help="timings of each")
  parser.add_argument("--out", metavar="FILE", help="write the result as JSON")


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  config = parse(config_flags.load(args))
  result = _measure(config, args.rounds)
  cells = [[name, f"{value:.4g}"] for name, value in result.items()]
  print(markdown_table(["quantity", "value"], cells))
  if args.out:
    epath.Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
  return 0


def _measure(config: Config, rounds: int) -> dict[str, float]:
  """Times the step, its parts, and a matrix product of the same dtype."""
  data = open_train_input(config)
  model = Model(config, data.image_shape)
  training = Training(model, data.num_examples)
  batch = sharding.to_global(model.mesh, data[0])
  state = training.init()
  params, key = jax.tree.map(jnp.copy, state.params), jax.random.key(0)

  logging.info("compiling the step")
  start = time.perf_counter()
  step = training.step.lower(state, batch).compile()
  compile_seconds = time.perf_counter() - start
  logging.info(
    "compiled in %.0f s; timing the step and its parts", compile_seconds
  )
  forward = jax.jit(model.loss)
  gradient = jax.jit(jax.value_and_grad(model.loss, has_aux=True))
  matrix = jnp.ones((MATMUL_SIZE, MATMUL_SIZE), model.module.dtype)
  product = jax.jit(jnp.matmul)

  def run_step():
    nonlocal state
    state, metrics = step(state, batch)
    return metrics

  seconds = interleaved_seconds(
    {
      "forward": lambda: forward(params, batch, key),
      "gradient": lambda: gradient(params, batch, key),
      "step": run_step,
      "matmul": lambda: product(matrix, matrix),
    },
    rounds,
  )
  median = {name: float(np.median(s)) for name, s in seconds.items()}
  size = config.train.batch_size
  flops = size * training_flops(model.module, data.image_shape)
  peak = model.mesh.size * 2 * MATMUL_SIZE**3 / median["matmul"]
  share = {
    name: float(np.median(seconds[name] / seconds["step"]))
    for name in ("forward", "gradient")
  }
  return {
    "images_per_second": size / median["step"],
    "step_ms": 1e3 * median["step"],
    "compile_seconds": compile_seconds,
    "model_flops": flops,
    "model_flops_per_second": flops / median["step"],
    "matmul_flops_per_second": peak,
    "model_flops_utilisation": flops / median["step"] / peak,
    "share_forward": share["forward"],
    "share_backward": share["gradient"] - share["forward"],
    "share_update": 1 - share["gradient"],
  }
