"""Where arrays live: the device mesh and one table of parameter rules.

Images are sharded over all devices, experts over the mesh axis `expert`; all
other parameters are replicated or, with FSDP, sharded over all devices.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("replica", "expert")
EXPERT_PATH = re.compile(r"(^|/)Moe/Mlp/")
FSDP = "fsdp"  # As a rule: shard the largest axis that divides by the devices.

# Path pattern -> partition spec; the first match counts.
EXPERT_RULE = (EXPERT_PATH.pattern, PartitionSpec("expert"))
REPLICATED_RULE = (r"", PartitionSpec())
FSDP_RULE = (r"", FSDP)

Rules = tuple[tuple[str, PartitionSpec | str], ...]


@dataclasses.dataclass(frozen=True)
class MeshSpec:
  """Sizes of the mesh axes.

  Attributes:
    replica: devices that hold the same experts; -1 for the rest.
    expert: devices that share the experts out among them; -1 for the rest.
    fsdp: shard the parameters that are not experts, and the optimizer state.
  """

  replica: int = -1
  expert: int = 1
  fsdp: bool = False

  def __post_init__(self):
    sizes = {axis: getattr(self, axis) for axis in AXES}
    for axis, size in sizes.items():
      if size != -1 and size < 1:
        raise ValueError(
          f"mesh.{axis}={size}: must be positive, or -1 for the rest."
        )
    if list(sizes.values()) == [-1, -1]:
      raise ValueError("mesh: only one of replica and expert can be -1.")

  def shape(self, num_devices: int) -> dict[str, int]:
    """Both sizes, on so many devices.

    Raises:
      ValueError: if they do not multiply to the number of devices.
    """
    sizes = {axis: getattr(self, axis) for axis in AXES}
    known = math.prod(size for size in sizes.values() if size != -1)
    rest = num_devices // known
    sizes = {axis: rest if n == -1 else n for axis, n in sizes.items()}
    if math.prod(sizes.values()) != num_devices:
      raise ValueError(
        f"mesh: replica={self.replica} x expert={self.expert} do not make up "
        f"the {num_devices} devices. Set sizes whose product is {num_devices}, "
        "or one of them to -1 and the other to a divisor."
      )
    return sizes


def make_mesh(spec: MeshSpec, devices: Sequence[Any] | None = None) -> Mesh:
  """The mesh over all devices, or over those given, with Auto axes.

  Devices come in the order of their processes, so that the rows of a global
  batch are those of process 0, then those of process 1, and so on: the same
  rows for any number of processes. On TPU slices that also keeps devices that
  share experts close together: they are whole hosts, which are numbered from
  neighbour to neighbour, or parts of one.

  Raises:
    ValueError: if the sizes do not fit the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  devices = sorted(
    devices, key=lambda device: (device.process_index, device.id)
  )
  shape = [spec.shape(len(devices))[axis] for axis in AXES]
  grid = np.array(devices).reshape(shape)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def parameter_rules(spec: MeshSpec, has_experts: bool) -> Rules:
  """The table for a model with or without experts."""
  others = FSDP_RULE if spec.fsdp else REPLICATED_RULE
  return (EXPERT_RULE, others) if has_experts else (others,)


def tree_shardings(mesh: Mesh, rules: Rules, tree: Any) -> Any:
  """A NamedSharding for each leaf, by the first rule that matches its path.

  Args:
    mesh: with axes `AXES`.
    rules: path patterns, searched for in "a/b/c", and partition specs.
    tree: arrays or shapes.

  Raises:
    ValueError: if a leaf has no rule, a rule no leaf, an expert parameter only
      a rule that does not shard it, or a size does not divide.
  """
  used = set()

  def sharding(path, leaf):
    name = path_name(path)
    index = next(
      (i for i, rule in enumerate(rules) if re.search(rule[0], name)), None
    )
    if index is None:
      raise ValueError(
        f"No sharding rule matches parameter {name}: add one to {rules}."
      )
    used.add(index)
    spec = rules[index][1] if np.ndim(leaf) else PartitionSpec()
    if spec == FSDP:
      spec = _fsdp_spec(mesh, leaf.shape)
    _check_spec(mesh, name, leaf, spec)
    return NamedSharding(mesh, spec)

  shardings = jax.tree_util.tree_map_with_path(sharding, tree)
  for index in sorted(set(range(len(rules))) - used):
    raise ValueError(
      f"Sharding rule {rules[index]} matches no parameter: remove or mend it."
    )
  return shardings


def path_name(path: tuple) -> str:
  """A key path as "a/b/c"."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def replicated(mesh: Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_batch(mesh: Mesh) -> NamedSharding:
  """Leading axis sharded over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def to_global(mesh: Mesh, local_batch: Any) -> Any:
  """Each process's slice of a batch as global arrays, sharded by batch."""
  sharding = by_batch(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, x), local_batch
  )


def to_local(array: jax.Array) -> np.ndarray:
  """This process's rows of an array that is sharded by batch.

  They come in the order in which `to_global` took the rows of this process,
  whatever the order of the devices in the mesh.
  """
  rows = {s.index[0].start or 0: s.data for s in array.addressable_shards}
  return np.concatenate([np.asarray(rows[start]) for start in sorted(rows)])


def _fsdp_spec(mesh: Mesh, shape: tuple[int, ...]) -> PartitionSpec:
  divisible = [i for i, n in enumerate(shape) if n % mesh.size == 0]
  if not divisible:
    return PartitionSpec()
  largest = max(divisible, key=lambda i: shape[i])
  return PartitionSpec(*[None] * largest, AXES)


def _check_spec(mesh: Mesh, name: str, leaf: Any, spec: PartitionSpec) -> None:
  if EXPERT_PATH.search(name) and np.ndim(leaf) and spec[:1] != ("expert",):
    raise ValueError(
      f"Expert parameter {name} has sharding {spec}: its leading axis must be "
      "sharded over 'expert'. Put a rule for it before the general one."
    )
  for size, axes in zip(leaf.shape, spec, strict=False):
    names = axes if isinstance(axes, tuple) else (axes,)
    parts = math.prod(mesh.shape[axis] for axis in names if axis)
    if size % parts:
      raise ValueError(
        f"{name}: an axis of size {size} cannot be sharded {parts} ways over "
        f"mesh axes {names}. Choose mesh sizes that divide it."
      )
