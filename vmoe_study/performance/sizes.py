"""Shapes and byte counts of a run that are known before compilation."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from vmoe_study.config import Config
from vmoe_study.nn import cost
from vmoe_study.parallel import sharding
from vmoe_study.run.experiment import Model, Training

# Batches in a host's memory: prefetched, being sent, and in Grain's buffer.
HOST_BATCHES = 5


def plan_form(config: Config) -> str | None:
  """The plan form of a sparse router; None for Soft MoE and dense models."""
  moe = config.model.moe
  if not moe.is_sparse:
    return None
  return moe.options.get("plan_form", "auto")


def with_plan_form(config: Config, form: str | None) -> Config:
  """The config with another plan form; with None, the config itself."""
  if form is None:
    return config
  moe = config.model.moe
  moe = dataclasses.replace(moe, options={**moe.options, "plan_form": form})
  model = dataclasses.replace(config.model, moe=moe)
  return dataclasses.replace(config, model=model)


def sizes_of(model: Model) -> dict[str, Any]:
  """The fields of a `ResourceEstimate` that are known before compilation."""
  config = model.config
  moe = cost.routing(model.module, model.image_shape)
  total, active = cost.parameter_counts(model.params_shape, moe)
  batch_size = config.train.batch_size
  flops = cost.training_flops(model.module, model.image_shape) * batch_size
  return {
    "config": config.name,
    "devices": model.mesh.size,
    "mesh": config.mesh.shape(model.mesh.size),
    "fsdp": config.mesh.fsdp,
    "remat": str(model.module.remat),
    "accumulation": config.train.accumulation,
    "moment_dtype": config.train.optimizer.moment_dtype or "",
    "batches_ahead": config.train.batches_ahead,
    "plan_form": plan_form(config),
    "capacity_factor": moe.capacity_factor if moe else None,
    "batch_size": batch_size,
    "parameters": total,
    "active_parameters": active,
    "model_flops_per_chip": flops / model.mesh.size,
  }


def batch_template(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes, dtypes and shardings of a training batch with single labels."""
  size = model.config.train.batch_size
  batch_sharding = sharding.batch_sharding(model.mesh)
  image = (size, *model.image_shape)
  return {
    "image": jax.ShapeDtypeStruct(image, jnp.uint8, sharding=batch_sharding),
    "label": jax.ShapeDtypeStruct((size,), jnp.int32, sharding=batch_sharding),
  }


def kept_bytes(training: Training) -> dict[str, int]:
  """HBM of the arrays that the training loop keeps on each device, unpadded.

  Returns:
    "parameters", "optimizer", "router state", "moving average" if there is one,
    "batch", the one in use, and "waiting batches". Apart from these there are
    only scalars and metrics.
  """
  template = training.state_template()
  batch = bytes_per_device(batch_template(training.model))
  ahead = training.model.config.train.batches_ahead
  ema = bytes_per_device(template.ema)
  return {
    "parameters": bytes_per_device(template.params),
    "optimizer": bytes_per_device(template.opt_state),
    "router state": bytes_per_device(template.router_state),
    **({"moving average": ema} if ema else {}),
    "batch": batch,
    "waiting batches": ahead * batch,
  }


def host_bytes(training: Training) -> dict[str, int]:
  """Memory of all hosts together: a checkpoint being written, and batches."""
  template = training.state_template()
  batch = _bytes(batch_template(training.model))
  return {"checkpoint": _bytes(template), "batches": HOST_BATCHES * batch}


def bytes_per_device(template: Any) -> int:
  """Size of a device's part of arrays, without padding."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(template)
  )


def _bytes(template: Any) -> int:
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(template)
  )
