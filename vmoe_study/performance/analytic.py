"""A resource estimate without a compiler, from the matrix products of a step.

It serves accelerators whose compiler is not available, and selects what to
compile. The training step is traced, not compiled. Only matrix products and
kernels are counted: their FLOPs, and one transfer of their operands and results
to and from HBM, as if everything else were fused with them. The results of the
products of the forward pass count as saved for the backward pass. Communication
is the exchange of tokens, gradients and sharded parameters. All figures are
approximate.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vmoe_study.config import Config
from vmoe_study.console.progress import waiting
from vmoe_study.nn import cost
from vmoe_study.nn.parameter_names import EXPERT_PATTERN
from vmoe_study.parallel.mesh import make_abstract_mesh
from vmoe_study.parallel.sharding import path_name
from vmoe_study.performance import hlo, roofline
from vmoe_study.performance.chips import parse_gpus
from vmoe_study.performance.estimate import ResourceEstimate, speed_of
from vmoe_study.performance.links import NodeLinks, SliceLinks
from vmoe_study.performance.sizes import (
  bytes_per_device,
  host_bytes,
  kept_bytes,
  sizes_of,
)
from vmoe_study.run.experiment import Model, Training
from vmoe_study.training.spec import TrainSpec

_PRODUCTS = ("dot_general", "conv_general_dilated", "pallas_call")


@dataclasses.dataclass(frozen=True)
class Products:
  """Matrix products of a training step; bytes and FLOPs over all devices.

  Attributes:
    flops: FLOPs of forward and backward pass.
    operand_bytes: bytes of all operands and results, counted at each use.
    saved_bytes: bytes of the results that the backward pass uses.
    all_to_all_bytes: bytes of each all-to-all.
  """

  flops: float
  operand_bytes: float
  saved_bytes: float
  all_to_all_bytes: tuple[float, ...]


def trace_products(model: Model) -> Products:
  """Traces forward and backward pass of a whole batch."""
  config = model.config
  size = config.train.batch_size
  batch = {
    "image": jax.ShapeDtypeStruct((size, *model.image_shape), jnp.float32),
    "label": jax.ShapeDtypeStruct((size, config.data.num_classes), jnp.float32),
  }
  key = jax.eval_shape(lambda: jax.random.key(0))
  arguments = model.params_shape, model.router_state_shape, batch, key

  def loss(params, router_state, batch, key):
    return model.loss(params, router_state, batch, key)[0]

  forward = _products_in(jax.make_jaxpr(loss)(*arguments), model.mesh.size)
  both = _products_in(
    jax.make_jaxpr(jax.grad(loss))(*arguments), model.mesh.size
  )
  model_flops = size * cost.training_flops(model.module, model.image_shape)
  return Products(
    flops=max(model_flops, sum(p.flops for p in both)),
    operand_bytes=sum(p.operand_bytes for p in both),
    saved_bytes=_saved(model, forward),
    all_to_all_bytes=tuple(p.operand_bytes for p in both if p.is_exchange),
  )


@dataclasses.dataclass(frozen=True)
class _Product:
  """A product, kernel or exchange; bytes and FLOPs over all devices."""

  flops: float
  operand_bytes: float
  result: float
  is_batched: bool
  is_exchange: bool


def _products_in(closed: Any, num_devices: int) -> list[_Product]:
  return list(_walk(closed.jaxpr, 1, num_devices))


def _walk(jaxpr: Any, times: int, num_devices: int) -> Iterator[_Product]:
  """The products of a traced function; within `shard_map`, of all devices."""
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name in _PRODUCTS or name == "all_to_all":
      yield _product(equation, times)
    if name == "pallas_call":
      continue
    inner = times
    if name == "scan":
      inner = times * equation.params["length"]
    elif name == "shard_map":
      inner = times * num_devices
    for parameter in equation.params.values():
      many = isinstance(parameter, tuple | list)
      for part in parameter if many else (parameter,):
        part = getattr(part, "jaxpr", part)
        if hasattr(part, "eqns"):
          yield from _walk(part, inner, num_devices)


def _product(equation: Any, times: int) -> _Product:
  name = equation.primitive.name
  inputs = [v.aval for v in equation.invars]
  outputs = [v.aval for v in equation.outvars]
  result = times * sum(map(_size, outputs))
  if name == "all_to_all":
    return _Product(0.0, result, 0.0, False, True)
  operand_bytes = result + times * sum(map(_size, inputs))
  flops, is_batched = 0.0, False
  if name == "dot_general":
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    depth = math.prod(inputs[0].shape[axis] for axis in contracted)
    flops = 2.0 * times * depth * math.prod(outputs[0].shape)
    is_batched = bool(batched)
  return _Product(flops, operand_bytes, result, is_batched, False)


def _size(aval: Any) -> float:
  if not hasattr(aval, "dtype") or not hasattr(aval.dtype, "itemsize"):
    return 0.0
  return math.prod(aval.shape) * aval.dtype.itemsize


def _saved(model: Model, forward: list[_Product]) -> float:
  """Bytes that the backward pass uses, according to the model's `remat`."""
  module, config = model.module, model.config
  results = [p for p in forward if not p.is_exchange]
  whole = sum(p.result for p in results)
  tokens = config.train.batch_size * cost.tokens_per_image(
    module, model.image_shape
  )
  inputs = (
    module.depth * tokens * module.width * jnp.dtype(module.dtype).itemsize
  )
  if module.remat == "none":
    return whole
  block = whole / module.depth  # What one block saves while it is recomputed.
  if module.remat == "full":
    return inputs + block
  return inputs + block + sum(p.result for p in results if not p.is_batched)


def memory(
  training: Training, products: Products, train: TrainSpec
) -> dict[str, float]:
  """Use of HBM per device by part, as in `ResourceEstimate.hbm_bytes`.

  Args:
    training: model and optimizer.
    products: matrix products of a step.
    train: the spec whose accumulation and batches ahead apply, instead of those
      of `training`.
  """
  kept = kept_bytes(training)
  saved = products.saved_bytes / training.model.mesh.size / train.accumulation
  return {
    **kept,
    "waiting batches": train.batches_ahead * kept["batch"],
    "activations": saved + kept["parameters"],  # With the gradient.
  }


def step_seconds(
  training: Training,
  products: Products,
  accumulation: int,
  links: SliceLinks | NodeLinks,
) -> dict[str, float]:
  """Like `roofline.step_seconds`, but nothing overlaps with communication."""
  devices = training.model.mesh.size
  kept = kept_bytes(training)
  # Moments, moving average and parameters are read and written; the gradient is
  # read, and added to once for each further part of the batch.
  update = 2 * kept["optimizer"] + (1 + 2 * accumulation) * kept["parameters"]
  update += 2 * kept.get("moving average", 0)
  schedule = [hlo.Event(products.operand_bytes / devices + update)]
  schedule += [hlo.Event(0.0, c) for c in _collectives(training, products)]
  flops = products.flops / devices
  return roofline.step_seconds(flops, tuple(schedule), links)


def estimate_gpus(
  config: Config,
  devices: str,
  image_shape: tuple[int, int, int],
  num_examples: int,
) -> ResourceEstimate:
  """Estimates a run on GPUs, such as "h100:8".

  Raises:
    ValueError: the GPUs are unknown, or the config cannot run on them.
  """
  chip, count = parse_gpus(devices)
  model = Model(config, image_shape, make_abstract_mesh(config.mesh, count))
  training = Training(model, num_examples)
  with waiting("tracing the step"):
    products = trace_products(model)
  parts = memory(training, products, config.train)
  total = sum(parts.values())
  links = NodeLinks(chip)
  accumulation = config.train.accumulation
  seconds = step_seconds(training, products, accumulation, links)
  schedule = [hlo.Event(0.0, c) for c in _collectives(training, products)]
  return ResourceEstimate(
    **sizes_of(model),
    topology=devices,
    slices=1,
    compiler="none: analytic",
    fits=total <= chip.hbm_bytes,
    hbm_bytes={**parts, "total": total, "capacity": chip.hbm_bytes},
    host_bytes=host_bytes(training),
    flops_per_chip=products.flops / count,
    hbm_traffic_bytes=seconds["hbm"] * chip.hbm_bandwidth,
    collectives=hlo.summary(hlo.traffic(tuple(schedule)).collectives),
    **speed_of(seconds, training),
  )


def _collectives(
  training: Training, products: Products
) -> Iterator[hlo.Collective]:
  """The exchanges of tokens, and the collectives of parameters and gradients.

  The gradient of an array is reduced over the mesh axes that it is not sharded
  over. An array that is sharded, but not like experts, is all-gathered for the
  forward and for the backward pass, and its gradient is reduce-scattered.
  """
  mesh = training.model.mesh
  names = mesh.axis_names
  for size in products.all_to_all_bytes:
    groups = _groups(mesh, ("expert",))
    yield hlo.Collective("all-to-all", size / mesh.size, groups)
  totals: collections.Counter = collections.Counter()
  template = training.state_template().params
  for path, leaf in jax.tree_util.tree_leaves_with_path(template):
    sharded = _axes(leaf.sharding.spec)
    is_expert = re.search(EXPERT_PATTERN, path_name(path))
    gathered = sharded - {"expert"} if is_expert else sharded
    part = bytes_per_device(leaf)
    whole = part * math.prod(mesh.shape[name] for name in gathered)
    if gathered:
      axes = tuple(name for name in names if name in gathered)
      totals["all-gather", axes] += 2 * whole
      totals["reduce-scatter", axes] += whole
    axes = tuple(name for name in names if name not in sharded)
    totals["all-reduce", axes] += part
  for (kind, axes), size in totals.items():
    yield hlo.Collective(kind, size, _groups(mesh, axes))


def _axes(spec: jax.sharding.PartitionSpec) -> set[str]:
  """Names of the mesh axes that an array is sharded over."""
  parts = [part if isinstance(part, tuple) else (part,) for part in spec]
  return {name for part in parts for name in part if name}


def _groups(mesh: Any, axes: tuple[str, ...]) -> np.ndarray:
  """(groups, n): numbers of the devices along some axes of the mesh."""
  devices = np.arange(mesh.size).reshape(tuple(mesh.shape.values()))
  places = [mesh.axis_names.index(name) for name in axes]
  devices = np.moveaxis(devices, places, range(-len(places), 0))
  return devices.reshape(-1, math.prod(mesh.shape[name] for name in axes))
