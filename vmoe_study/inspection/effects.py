"""Effects of single experts and of the test-time capacity on accuracy."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from vmoe_study.inspection.measure import Measure, is_correct, layer_names
from vmoe_study.nn import cost
from vmoe_study.nn import parameter_names as names
from vmoe_study.nn.vit import VisionTransformer
from vmoe_study.run.experiment import Model


def scale_experts(params: Any, factors: Mapping[str, Float[Array, "E"]]) -> Any:
  """Scales the outputs of experts by scaling their output parameters.

  Args:
    params: parameters of a `VisionTransformer`.
    factors: one factor per expert, by layer name.
  """
  flat = flatten_dict(params, sep="/")
  for layer, factor_E in factors.items():
    for name in ("kernel", "bias"):
      path = (
        f"{names.ENCODER}/{layer}/{names.EXPERTS}/{names.MLP_OUTPUT}/{name}"
      )
      ones = (1,) * (flat[path].ndim - 1)
      flat[path] = flat[path] * factor_E.reshape(-1, *ones)
  return unflatten_dict(flat, sep="/")


def measure_correct(module: VisionTransformer) -> Measure:
  """Compiled measure: whether each image is classified correctly."""
  return jax.jit(lambda variables, batch: is_correct(module, variables, batch))


def measure_ablation(module: VisionTransformer) -> Measure:
  """A measure of correctness without each expert.

  The output of the expert is set to zero; routing and combine weights are
  unchanged.

  Returns:
    A measure that gives, by layer name, (B, E + 1) of 1 for correct, else 0:
    column e without expert e, the last column without any expert.
  """
  layers = layer_names(module)
  if not layers:
    return lambda variables, batch: {}
  num_experts = module.moe.options["num_experts"]
  # One row of factors for the experts' outputs per column of the result.
  factors_XE = 1 - np.eye(num_experts + 1, num_experts, dtype=np.float32)
  factors_XE[-1] = 0

  @jax.jit
  def correct(variables, batch, factors):
    params = scale_experts(variables["params"], factors)
    return is_correct(module, {**variables, "params": params}, batch)

  def measure(variables, batch):
    found = {}
    for layer in layers:
      columns = []
      for factor_E in factors_XE:
        factors = {other: jnp.ones(num_experts) for other in layers}
        factors[layer] = jnp.asarray(factor_E)
        # Fetched one by one: long queues of collectives fail on the CPU.
        columns.append(np.asarray(correct(variables, batch, factors)))
      found[layer] = np.stack(columns, axis=1)
    return found

  return measure


def at_capacities(
  model: Model, capacity_factors: Iterable[float]
) -> tuple[dict[float, Model], list[str]]:
  """The same model, evaluated with other capacity factors.

  Returns:
    Models by capacity factor, none unless the router is sparse; and reasons
    why capacity factors were left out.
  """
  models: dict[float, Model] = {}
  left_out: list[str] = []
  if not model.config.model.moe.is_sparse:
    return models, left_out
  for factor in map(float, capacity_factors):
    config = dataclasses.replace(model.config, evaluation_capacity=factor)
    try:
      cost.routing(
        model.module.clone(moe=config.evaluation_moe), model.image_shape
      )
    except ValueError as error:
      left_out.append(str(error))
    else:
      models[factor] = Model(config, model.image_shape, model.mesh)
  return models, left_out


def slots_per_expert(model: Model) -> int:
  """C in evaluation; 0 for a dense model.

  Raises:
    ValueError: the capacity factor leaves no slot.
  """
  sizes = cost.routing(model.evaluation_module, model.image_shape)
  return sizes.slots_per_group // sizes.num_experts if sizes else 0
