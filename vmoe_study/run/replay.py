"""Recomputes a failed step, to find which numbers are not finite.

The run has kept the inputs of the step: parameters, optimizer state and batch.
The step can be recomputed on any devices and with any change of the config,
such as "model.fields.dtype=float32".
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from vmoe_study.checkpoint.load import (
  AS_NUMPY,
  absolute,
  load_metadata,
  restore_trees,
)
from vmoe_study.checkpoint.tree import flatten
from vmoe_study.config import parse
from vmoe_study.data.device_ops import DeviceOps
from vmoe_study.parallel.sharding import to_global
from vmoe_study.run.config_file import override_config
from vmoe_study.run.experiment import Model, Training
from vmoe_study.run.metadata import Metadata
from vmoe_study.training.step import step_norms

KINDS = ("batch", "params", "metrics", "gradient", "update", "norms")


def replay(
  folder: epath.PathLike, step: int, overrides: Sequence[str] = ()
) -> dict[str, Any]:
  """Recomputes a failed step from the inputs that the run has kept.

  Args:
    folder: WORKDIR/failures/step_N.
    step: N.
    overrides: changes of fields of the run's config, "FIELD=VALUE".

  Returns:
    The trees of `KINDS` in this order, of numpy arrays. "batch" is the batch
    before mixup, "update" the parameters after the step. "norms" are the norms
    of gradient and update, which may overflow although all entries are finite.

  Raises:
    ValueError: the config is wrong, or does not fit batch or devices.
    CheckpointError: the files are damaged.
  """
  metadata = Metadata.from_dict(load_metadata(folder, step)[0])
  config = override_config(parse(metadata.config), overrides)
  model = Model(config, metadata.image_shape)
  training = Training(model, metadata.num_examples)
  template = training.state_template()
  templates = {
    "params": template.params,
    "opt_state": template.opt_state,
    "router_state": template.router_state,
    "batch": AS_NUMPY,
  }
  _, items, _ = restore_trees(absolute(folder), step, templates)
  batch = to_global(model.mesh, items["batch"])
  compute = jax.jit(_compute, static_argnums=0)
  found = compute(
    training,
    *(items[name] for name in ("params", "opt_state", "router_state")),
    batch,
    jnp.uint32(config.seed),
    jnp.int32(step),
  )
  prepared = DeviceOps.of(config.data)(items["batch"])
  given = {"batch": prepared, "params": items["params"]}
  trees = {**given, **found}
  return {kind: jax.device_get(trees[kind]) for kind in KINDS}


def largest(tree: Any) -> tuple[str, float]:
  """Path and value of the largest absolute value; NaN counts as largest."""
  sizes = {name: float(np.max(np.abs(x))) for name, x in flatten(tree).items()}
  return max(sizes.items(), key=lambda item: (np.isnan(item[1]), item[1]))


def not_finite(
  trees: Mapping[str, Any],
) -> Iterator[tuple[str, str, str, str]]:
  """Yields the arrays with entries that are not finite.

  Each is given as (kind of tree, path, number of such entries, number of
  entries). Update and norms are left out if something before them was not
  finite, because they are then not finite either.
  """
  found = False
  for kind, tree in trees.items():
    if kind in ("update", "norms") and found:
      return
    for name, leaf in sorted(flatten(tree).items()):
      if bad := int(np.sum(~np.isfinite(leaf))):
        found = True
        yield kind, name, f"{bad:,}", f"{np.size(leaf):,}"


def _compute(training, params, opt_state, router_state, batch, seed, step):
  metrics, gradient = training.gradient(params, router_state, batch, seed, step)
  updates, _ = training.optimizer.update(gradient, opt_state, params)
  update = jax.tree.map(jnp.add, params, updates)
  return {
    "metrics": metrics,
    "gradient": gradient,
    "update": update,
    "norms": step_norms(gradient, updates),
  }
