"""Shardings of parameters, by a table of rules, and of batches.

Images are sharded over all devices, and experts over the mesh axis `expert`.
All other parameters are replicated. With FSDP all parameters are sharded over
all devices of a slice, as far as their sizes divide.
"""

import itertools
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vmoe_study.parallel.mesh import AXES, WITHIN_SLICE


class Fsdp(NamedTuple):
  """A partition spec to be extended by the other mesh axes within a slice."""

  spec: PartitionSpec


# Pairs of a path pattern and a partition spec; the first match counts.
Rules = tuple[tuple[str, PartitionSpec | Fsdp], ...]


def parameter_rules(experts: str | None, fsdp: bool = False) -> Rules:
  """The table of rules for a model.

  Args:
    experts: pattern of the paths of expert parameters, whose leading axis is E;
      None if the model has no experts.
    fsdp: whether to shard all parameters over all devices of a slice.
  """
  specs = PartitionSpec("expert"), PartitionSpec()
  of_experts, of_others = map(Fsdp, specs) if fsdp else specs
  others = ("", of_others)
  return ((experts, of_experts), others) if experts else (others,)


def tree_shardings(
  mesh: Mesh, rules: Rules, tree: Any, experts: str | None = None
) -> Any:
  """A NamedSharding for each leaf, by the first rule that matches its path.

  Args:
    mesh: with axes `AXES`.
    rules: pairs of a pattern, to be found in paths such as "a/b/c", and a spec.
    tree: arrays or shapes.
    experts: pattern of the paths that must be sharded over `expert`.

  Raises:
    ValueError: a leaf has no rule, a rule matches no leaf, an expert parameter
      is not sharded over `expert`, or a mesh size does not divide an axis.
  """
  used = set()

  def sharding(path, leaf):
    name = path_name(path)
    index = next(
      (i for i, rule in enumerate(rules) if re.search(rule[0], name)), None
    )
    if index is None:
      raise ValueError(
        f"parameter {name}: must match a rule of {rules}. Add one for it."
      )
    used.add(index)
    spec = rules[index][1] if np.ndim(leaf) else PartitionSpec()
    if isinstance(spec, Fsdp):
      spec = _completed(mesh, spec.spec, leaf.shape)
    if experts and re.search(experts, name):
      _check_is_sharded(name, leaf, spec)
    _check_divides(mesh, name, leaf, spec)
    return NamedSharding(mesh, spec)

  shardings = jax.tree_util.tree_map_with_path(sharding, tree)
  for index in sorted(set(range(len(rules))) - used):
    raise ValueError(
      f"sharding rule {rules[index]}: must match a parameter. Correct its "
      "pattern or remove it."
    )
  return shardings


def path_name(path: tuple) -> str:
  """Formats a key path of `jax.tree_util` as "a/b/c"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding that replicates an array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def statistic_sharding(
  statistic: Any, parameter: Any, sharding: NamedSharding
) -> NamedSharding:
  """The sharding of an optimizer statistic of a parameter.

  Every axis of the statistic is sharded like the first axis of the parameter
  that it matches. A statistic of another shape is replicated.

  Args:
    statistic: an array or shape with the axes of the parameter or, as for the
      factors of Adafactor, only some of them.
    parameter: an array or its shape.
    sharding: sharding of the parameter.
  """
  if statistic.shape == parameter.shape:
    return sharding
  spec = [*sharding.spec, *[None] * len(parameter.shape)]
  entries, axis = [], 0
  for size in statistic.shape:
    if size not in parameter.shape[axis:]:
      return replicated(sharding.mesh)
    axis += parameter.shape[axis:].index(size) + 1
    entries.append(spec[axis - 1])
  return NamedSharding(sharding.mesh, PartitionSpec(*entries))


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of a batch: leading axis over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def to_global(mesh: Mesh, local_batch: Any) -> Any:
  """Global arrays, sharded by batch, from each process's rows of a batch."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), local_batch
  )


def to_local(array: jax.Array) -> np.ndarray:
  """This process's rows of an array that is sharded by batch.

  The rows are in the order in which `to_global` took them, for any order of the
  devices in the mesh.
  """
  rows = {s.index[0].start or 0: s.data for s in array.addressable_shards}
  return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


def _completed(
  mesh: Mesh, spec: PartitionSpec, shape: tuple[int, ...]
) -> PartitionSpec:
  """Shards an array also over the mesh axes that its spec leaves out.

  Chooses the spec with the most shards that its sizes allow; of several, the
  one along the fewest and largest axes of the array.
  """
  missing = [axis for axis in WITHIN_SLICE if axis not in spec]
  free = [i for i in range(len(shape)) if i >= len(spec) or spec[i] is None]
  ways = []
  for places in itertools.product([*free, None], repeat=len(missing)):
    axes: dict[int, tuple[str, ...]] = {}
    for axis, place in zip(missing, places, strict=True):
      if place is not None:
        axes[place] = (*axes.get(place, ()), axis)
    parts = {i: _num_shards(mesh, along) for i, along in axes.items()}
    if all(shape[i] % count == 0 for i, count in parts.items()):
      largest = sum(shape[i] for i in parts)
      ways.append((math.prod(parts.values()), -len(parts), largest, axes))
  *_, best = max(ways, key=lambda way: way[:3])
  entries = [*spec, *[None] * (len(shape) - len(spec))]
  for i, along in best.items():
    entries[i] = along
  return PartitionSpec(*entries[: max([len(spec) - 1, *best]) + 1])


def _num_shards(mesh: Mesh, axes: tuple[str, ...]) -> int:
  return math.prod(mesh.shape[axis] for axis in axes)


def _check_is_sharded(name: str, leaf: Any, spec: PartitionSpec) -> None:
  if np.ndim(leaf) and spec[:1] != ("expert",):
    raise ValueError(
      f"expert parameter {name}: sharding {spec}, but its leading axis must be "
      "sharded over 'expert'. Put a rule for it before the general one."
    )


def _check_divides(
  mesh: Mesh, name: str, leaf: Any, spec: PartitionSpec
) -> None:
  for size, axes in zip(leaf.shape, spec, strict=False):
    names = axes if isinstance(axes, tuple) else (axes,)
    parts = math.prod(mesh.shape[axis] for axis in names if axis)
    if size % parts:
      raise ValueError(
        f"{name}: an axis of size {size} must be divisible by {parts}, the "
        f"size of mesh axes {names}. Choose mesh sizes that divide it."
      )
