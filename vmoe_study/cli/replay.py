"""Runs a failed step again, and shows where numbers are not finite.

A run that met a loss or gradient that was not finite has kept what the step was
computed from. Here the same step is computed again, on any devices, and with
any change, as `--config.model.fields.dtype=float32`, to find the cause.
"""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vmoe_study.checkpoint.load import (
  AS_NUMPY,
  absolute,
  load_config,
  restore_trees,
)
from vmoe_study.checkpoint.tree import flatten
from vmoe_study.cli import config_flags
from vmoe_study.config import complete, parse
from vmoe_study.parallel.sharding import to_global
from vmoe_study.run import failures
from vmoe_study.run.experiment import Model, Training
from vmoe_study.study.render import markdown_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "--workdir", required=True, metavar="DIR", help="of the run that failed"
  )
  parser.add_argument(
    "--step", type=int, metavar="N", help="which step; by default the last"
  )
  # Fields of the run's own config can be changed.
  parser.set_defaults(config=None)


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  folder, step = failures.find(args.workdir, args.step)
  trees = replay(folder, step, args.overrides)
  print(f"Step {step}: the loss is {trees['metrics']['loss']}.")
  for kind in ("batch", "params"):
    name, value = largest(trees[kind])
    print(f"The largest of {kind}: {value:.4g} in {name}.")
  if rows := list(not_finite(trees)):
    print("Not finite, in the order in which they are computed:")
    print(markdown_table(["what", "path", "not finite", "of"], rows))
  else:
    print("Everything is finite.")
  return 0


def replay(
  folder: epath.PathLike, step: int, overrides: list[str]
) -> dict[str, Any]:
  """What a kept step is computed from, and what comes of it.

  Args:
    folder: WORKDIR/failures/step_N.
    step: N.
    overrides: "--config.FIELD=VALUE".

  Returns:
    "batch", "params", "metrics", "gradient" and "update", in this order; trees
    of numpy arrays. The batch is before mixup, the update the parameters as
    they would be after the step.

  Raises:
    ValueError: the config is wrong, or does not fit batch or devices.
    CheckpointError: the files are damaged.
  """
  record, _ = load_config(folder, step)
  values = config_flags.override(complete(record["config"]), overrides)
  model = Model(parse(values), tuple(record["image_shape"]))
  training = Training(model, record["num_examples"])
  template = training.state_template()
  templates = {
    "params": template.params,
    "opt_state": template.opt_state,
    "batch": AS_NUMPY,
  }
  _, items, _ = restore_trees(absolute(folder), step, templates)
  batch = to_global(model.mesh, items["batch"])
  compute = jax.jit(_compute, static_argnums=0)
  found = compute(
    training, items["params"], items["opt_state"], batch, jnp.int32(step)
  )
  given = {"batch": items["batch"], "params": items["params"]}
  trees = {**given, **found}
  order = ("batch", "params", "metrics", "gradient", "update")
  return {kind: jax.device_get(trees[kind]) for kind in order}


def largest(tree: Any) -> tuple[str, float]:
  """Path and size of the largest absolute value; a NaN counts as larger."""
  sizes = {name: float(np.max(np.abs(x))) for name, x in flatten(tree).items()}
  return max(sizes.items(), key=lambda item: (np.isnan(item[1]), item[1]))


def not_finite(
  trees: Mapping[str, Any],
) -> Iterator[tuple[str, str, str, str]]:
  """Yields (tree, path, entries not finite, entries) of such arrays.

  The update only if nothing before it is: else it goes without saying.
  """
  found = False
  for kind, tree in trees.items():
    if kind == "update" and found:
      return
    for name, leaf in sorted(flatten(tree).items()):
      if bad := int(np.sum(~np.isfinite(leaf))):
        found = True
        yield kind, name, f"{bad:,}", f"{np.size(leaf):,}"


def _compute(training, params, opt_state, batch, step):
  metrics, gradient = training.gradient(params, batch, step)
  updates, _ = training.optimizer.update(gradient, opt_state, params)
  update = jax.tree.map(jnp.add, params, updates)
  return {"metrics": metrics, "gradient": gradient, "update": update}
