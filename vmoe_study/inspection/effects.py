"""What accuracy depends on: single experts, and capacity at test time."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from vmoe_study.inspection.measure import Measure, is_correct, layer_names
from vmoe_study.nn import parameter_names as names
from vmoe_study.nn.vit import VisionTransformer


def silence(params: Any, keep: Mapping[str, Float[Array, "E"]]) -> Any:
  """Parameters with which expert e of a layer outputs keep[layer][e] times it.

  Args:
    params: of a `VisionTransformer`.
    keep: a factor for each expert, by the layer's name.
  """
  flat = flatten_dict(params, sep="/")
  for layer, factors in keep.items():
    for name in ("kernel", "bias"):
      path = (
        f"{names.ENCODER}/{layer}/{names.EXPERTS}/{names.MLP_OUTPUT}/{name}"
      )
      ones = (1,) * (flat[path].ndim - 1)
      flat[path] = flat[path] * factors.reshape(-1, *ones)
  return unflatten_dict(flat, sep="/")


def measure_ablation(module: VisionTransformer) -> Measure:
  """Measures whether images are classified correctly without an expert.

  Tokens are routed, and combine weights are, as if the expert were there; what
  it would add to its tokens is missing.

  Returns:
    A measure with, by layer, (B, E + 1) of 1 for correct and 0: column e
    without expert e, the last one without any.
  """
  layers = layer_names(module)
  if not layers:
    return lambda params, batch: {}
  num_experts = module.moe.options["num_experts"]
  without = 1 - np.eye(num_experts + 1, num_experts, dtype=np.float32)
  without[-1] = 0

  @jax.jit
  def correct(params, batch, keep):
    return is_correct(module, silence(params, keep), batch)

  def measure(params, batch):
    found = {}
    for layer in layers:
      columns = []
      for factors in without:
        keep = {other: jnp.ones(num_experts) for other in layers}
        keep[layer] = jnp.asarray(factors)
        # Fetched one by one: JAX's CPU collectives bear no long queues.
        columns.append(np.asarray(correct(params, batch, keep)))
      found[layer] = np.stack(columns, axis=1)
    return found

  return measure


def measure_correct(module: VisionTransformer) -> Measure:
  """Measures, compiled, whether each image is classified correctly."""
  return jax.jit(lambda params, batch: is_correct(module, params, batch))
