"""The door: a ConfigDict becomes typed, checked parts here, once.

Beyond this file nothing sees a ConfigDict. Unknown names, wrong types and
values outside their domain fail here, naming the field, the value and the
rule, before any device is touched.
"""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from vmoe_study import options
from vmoe_study.data.pipeline import DataSpec
from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.router import ROUTERS, SparseRouter, make_router
from vmoe_study.nn.vit import SIZES, VisionTransformer, moe_blocks, variant
from vmoe_study.parallel.mesh import MeshSpec
from vmoe_study.training.health import HealthSpec
from vmoe_study.training.optimizer import (
  OptimizerSpec,
  ScheduleSpec,
  check_schedule,
)

# Far beyond any use. What is larger would take minutes, or all of the memory,
# before something else refused it.
LARGEST = {
  "num_classes": 10**7,
  "width": 10**6,
  "depth": 1000,
  "mlp_dim": 10**7,
  "num_heads": 10**4,
  "patch_size": 10**4,
  "representation_size": 10**6,
  "num_experts": 10**5,
  "num_selected_experts": 10**5,
  "capacity_factor": 10**5,
  "capacity_multiple_of": 10**6,
  "slots_per_expert": 10**6,
  "num_iterations": 10**5,
  "group_images": 10**6,
  "batch_size": 10**7,
  "num_steps": 10**9,
  "num_epochs": 10**7,
  "accumulation": 10**5,
  "num_workers": 1000,
}


def _check_largest(where: str, values: Mapping[str, Any]) -> None:
  for name, largest in LARGEST.items():
    value = values.get(name, 0)
    if isinstance(value, int | float) and value > largest:
      raise ValueError(
        f"{where}.{name}={value!r}: must be at most {largest:,}."
      )


@dataclasses.dataclass(frozen=True)
class ModelSpec:
  """Fields of `VisionTransformer`, by backbone name and exceptions from it.

  Attributes:
    backbone: as in "B/16"; empty if all sizes are given in `fields`.
    fields: of `VisionTransformer`, but `moe` and `exchange`.
    moe: routed blocks; router "dense" for none.
  """

  backbone: str = ""
  fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  moe: MoeOptions = dataclasses.field(default_factory=MoeOptions)

  def __post_init__(self):
    hints = typing.get_type_hints(VisionTransformer)
    options.check_names("fields", self.fields, self.names())
    for name, value in self.fields.items():
      options.check_type(f"fields.{name}", value, hints[name])
    _check_largest("fields", self.fields)
    _check_largest("moe.options", self.moe.options)
    make_router(self.moe.router, **self.moe.options)
    sizes = self.arguments()
    for name in ("num_classes", *SIZES):
      if name not in sizes:
        raise ValueError(f"fields.{name} must be given, or a backbone.")
      options.check_least(f"fields.{name}", sizes[name], 1)
    size = sizes.get("representation_size") or 0
    options.check_least("fields.representation_size", size, 0)
    if not 0 <= sizes.get("dropout_rate", 0) < 1:
      raise ValueError(
        f"fields.dropout_rate={sizes['dropout_rate']}: must be in [0, 1)."
      )
    if self.is_routed:
      moe_blocks(self.moe.blocks, sizes["depth"])

  @staticmethod
  def names() -> set[str]:
    """What `fields` may hold."""
    own = {"parent", "name", "moe", "exchange"}
    return {f.name for f in dataclasses.fields(VisionTransformer)} - own

  @property
  def is_routed(self) -> bool:
    """Whether there are MoE blocks."""
    return self.moe.router != "dense"

  def arguments(self) -> dict[str, Any]:
    """Of `VisionTransformer`, except the exchange."""
    sizes = variant(self.backbone) if self.backbone else {}
    return {**sizes, **self.fields, "moe": self.moe}


@dataclasses.dataclass(frozen=True)
class InitializeSpec:
  """Where the parameters of a fresh run come from; see `initialize`.

  Attributes:
    kind: "random", or what `path` is: the workdir of a run ("checkpoint"), the
      prefix of a public V-MoE checkpoint ("vmoe"), a ViT's file ("npz").
    path: local path or URL; empty for "random".
  """

  kind: Literal["random", "checkpoint", "vmoe", "npz"] = "random"
  path: str = ""

  def __post_init__(self):
    if (self.kind == "random") == bool(self.path):
      raise ValueError(
        f"kind={self.kind!r} with path={self.path!r}: 'checkpoint', 'vmoe' and "
        "'npz' need a path, 'random' has none."
      )


@dataclasses.dataclass(frozen=True)
class MixtureSpec:
  """A further training data set, mixed into the main one.

  Attributes:
    data: which, and how it is prepared.
    weight: examples of it for every one of the main data set.
  """

  data: DataSpec
  weight: float


@dataclasses.dataclass(frozen=True)
class TrainSpec:
  """How long, on what batches, by which loss and optimizer.

  Attributes:
    batch_size: images per step, over all hosts.
    num_steps: updates; or else give `num_epochs`.
    num_epochs: passes over the training data.
    loss: "softmax_xent", or "sigmoid_xent" for many labels per image.
    optimizer: see `OptimizerSpec`.
    schedule: see `ScheduleSpec`.
    accumulation: parts that a batch is computed in, one after another.
    mixup: parameter of mixup's Beta distribution; 0 for none.
    num_workers: data processes per host; 0 for threads only.
    report_every: steps between training metrics.
    evaluate_every: steps between evaluations; 0 for one at the end.
    save_every: steps between checkpoints; 0 for one at the end.
    keep: checkpoints to keep.
    keep_every: checkpoints at multiples of this are kept for ever; 0 for none.
    on_save_error: when a checkpoint or metrics cannot be written, as on a full
      disk: "stop", or "continue" without; the last checkpoint is needed.
    health: see `HealthSpec`.
  """

  batch_size: int
  num_steps: int = 0
  num_epochs: float = 0.0
  loss: Literal["softmax_xent", "sigmoid_xent"] = "softmax_xent"
  optimizer: OptimizerSpec = dataclasses.field(default_factory=OptimizerSpec)
  schedule: ScheduleSpec = dataclasses.field(default_factory=ScheduleSpec)
  accumulation: int = 1
  mixup: float = 0.0
  num_workers: int = 0
  report_every: int = 100
  evaluate_every: int = 0
  save_every: int = 0
  keep: int = 2
  keep_every: int = 0
  on_save_error: Literal["stop", "continue"] = "stop"
  health: HealthSpec = dataclasses.field(default_factory=HealthSpec)

  def __post_init__(self):
    for name in ["batch_size", "accumulation", "report_every", "keep"]:
      options.check_least(name, getattr(self, name), 1)
    for name in ("mixup", "num_workers", "num_steps", "num_epochs"):
      options.check_least(name, getattr(self, name), 0)
    for name in ("evaluate_every", "save_every", "keep_every"):
      options.check_least(name, getattr(self, name), 0)
    _check_largest("train", vars(self))
    if self.mixup and self.batch_size % 2:
      raise ValueError(
        f"batch_size={self.batch_size}: mixup takes pairs of images."
      )
    if (self.num_steps > 0) == (self.num_epochs > 0):
      raise ValueError(
        f"num_steps={self.num_steps} and num_epochs={self.num_epochs}: give "
        "just one of them, and more than 0."
      )

  def total_steps(self, num_examples: int) -> int:
    """Updates of the whole run."""
    if self.num_steps:
      return self.num_steps
    return max(1, math.ceil(self.num_epochs * num_examples / self.batch_size))


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
  """Accuracy and loss on a data set.

  Where images are routed in groups, those that fill up the last batch compete
  for slots with the real ones of their group, though they are not counted: with
  `batch_size` a divisor of the number of images there are none.

  Attributes:
    data: which, and how it is prepared.
    batch_size: images at a time, over all hosts.
  """

  data: DataSpec
  batch_size: int


@dataclasses.dataclass(frozen=True)
class FewshotSpec:
  """k-shot transfer to a data set; see `evaluate.fewshot`.

  Attributes:
    train: where the k images per class come from.
    test: where accuracy is measured.
    batch_size: images at a time, over all hosts.
  """

  train: DataSpec
  test: DataSpec
  batch_size: int


@dataclasses.dataclass(frozen=True)
class Config:
  """A run.

  Attributes:
    name: of the recipe, for tables.
    seed: of initial values, data order and all noise.
    model: see `ModelSpec`.
    data: training data, or the main part of it.
    train: see `TrainSpec`.
    mixture: further training data, by name.
    initialize: what a fresh run starts from.
    evaluations: by name; none is needed.
    fewshot: by name; all share one penalty per number of shots.
    shots: images per class of the few-shot evaluations.
    evaluation_capacity: capacity factor of sparse routers in all evaluations;
      0 for that of training.
    mesh: see `MeshSpec`.
  """

  name: str
  model: ModelSpec
  data: DataSpec
  train: TrainSpec
  seed: int = 0
  mixture: Mapping[str, MixtureSpec] = dataclasses.field(default_factory=dict)
  initialize: InitializeSpec = dataclasses.field(default_factory=InitializeSpec)
  evaluations: Mapping[str, EvaluationSpec] = dataclasses.field(
    default_factory=dict
  )
  fewshot: Mapping[str, FewshotSpec] = dataclasses.field(default_factory=dict)
  shots: tuple[int, ...] = (1, 5, 10, 25)
  evaluation_capacity: float = 0.0
  mesh: MeshSpec = dataclasses.field(default_factory=MeshSpec)

  def problems(self) -> Iterator[str]:
    """What is wrong between the parts, or with a number; checked by `parse`."""
    if not 0 <= self.seed < 2**32:
      yield f"seed={self.seed}: must be in [0, 2**32)."
    for shots in self.shots:
      if shots < 1:
        yield f"shots={shots!r}: must be at least 1."
    yield from self._class_problems()
    if self.train.num_steps:
      try:
        check_schedule(self.train.schedule, self.train.num_steps)
      except ValueError as error:
        yield str(error)
    yield from self._evaluation_capacity_problems()

  def _class_problems(self) -> Iterator[str]:
    classes = self.model.fields["num_classes"]
    upstream = {"data": self.data}
    for kind in ("mixture", "evaluations"):
      for name, spec in getattr(self, kind).items():
        upstream[f"{kind}.{name}.data"] = spec.data
    for where, data in upstream.items():
      if data.num_classes != classes:
        yield (
          f"{where}.num_classes={data.num_classes} differs from the model's "
          f"head, model.fields.num_classes={classes}. Make them equal."
        )

  def _evaluation_capacity_problems(self) -> Iterator[str]:
    factor, router = self.evaluation_capacity, self.model.moe.router
    if factor < 0:
      yield f"evaluation_capacity={factor}: must be 0 or more."
    if factor and not issubclass(ROUTERS[router].router, SparseRouter):
      yield (
        f"evaluation_capacity={factor}: router {router!r} has no capacity that "
        "could differ from training. Set 0."
      )

  def to_dict(self) -> dict[str, Any]:
    """The completed config: nested dicts with every default written out.

    `parse` turns it back into an equal `Config`. A record of it does not depend
    on the defaults of the version that made it, and every field can be
    overridden on the command line.
    """
    config = dataclasses.asdict(self)
    model, moe = config["model"], config["model"]["moe"]
    model["fields"] = {
      name: value
      for name, value in options.defaults(VisionTransformer).items()
      if name in ModelSpec.names()
    } | model["fields"]
    if self.model.is_routed:
      moe["options"] = ROUTERS[moe["router"]].default_options() | moe["options"]
    return config

  @property
  def evaluation_moe(self) -> MoeOptions:
    """The routed blocks as they are evaluated; with the same parameters."""
    moe = self.model.moe
    if not self.evaluation_capacity:
      return moe
    capacity = {"capacity_factor": self.evaluation_capacity}
    return dataclasses.replace(moe, options={**moe.options, **capacity})

  @property
  def group_images(self) -> int:
    """Images per routing group; 1 without routed blocks."""
    return self.model.moe.group_images if self.model.is_routed else 1


def parse(values: Mapping[str, Any]) -> Config:
  """A checked `Config` from nested mappings, as of a ConfigDict or JSON.

  Raises:
    OptionsError: for everything that is wrong with it.
  """
  config = options.build(Config, "config", values)
  if problems := [f"config: {problem}" for problem in config.problems()]:
    raise options.OptionsError(problems)
  return config


def check_batches(config: Config, num_devices: int) -> None:
  """Checks that every batch divides by devices and groups.

  Raises:
    OptionsError: naming every batch that does not, the numbers and the next
      size that fits.
  """
  if problems := list(_batch_problems(config, num_devices)):
    raise options.OptionsError(problems)


def _batch_problems(config: Config, num_devices: int) -> Iterator[str]:
  try:
    shape = config.mesh.shape(num_devices)
  except ValueError as error:
    yield str(error)
    shape = {"expert": 1}
  num_experts = config.model.moe.options.get("num_experts", 1)
  if config.model.is_routed and num_experts % shape["expert"]:
    yield (
      f"model.moe.options.num_experts={num_experts} cannot be shared out among "
      f"mesh.expert={shape['expert']} devices: it must be a multiple."
    )
  train = config.train
  if train.batch_size % train.accumulation:
    yield (
      f"train.batch_size={train.batch_size} cannot be computed in "
      f"train.accumulation={train.accumulation} equal parts."
    )
  sizes = {"train.batch_size": train.batch_size // train.accumulation}
  for kind in ("evaluations", "fewshot"):
    for name, spec in getattr(config, kind).items():
      sizes[f"{kind}.{name}.batch_size"] = spec.batch_size
  unit = num_devices * config.group_images
  for where, size in sizes.items():
    if size < 1 or size % unit:
      yield (
        f"{where}: {size} images at a time are not a multiple of "
        f"{num_devices} devices x {config.group_images} images per group = "
        f"{unit}. The next multiple is {max(-(-size // unit), 1) * unit}."
      )


def fit_to_devices(config: Config, num_devices: int) -> Config:
  """The config for evaluation on so many devices, however it was trained.

  As many devices share the experts out among them as mesh and devices allow;
  batches become the next larger ones that divide. What is measured stays the
  same.
  """
  num_experts = config.model.moe.options.get("num_experts", 1)
  share = num_experts if config.mesh.expert == -1 else config.mesh.expert
  mesh = dataclasses.replace(
    config.mesh, replica=-1, expert=math.gcd(share, num_devices)
  )
  unit = num_devices * config.group_images

  def grow(specs):
    return {
      name: dataclasses.replace(
        spec, batch_size=-(-spec.batch_size // unit) * unit
      )
      for name, spec in specs.items()
    }

  return dataclasses.replace(
    config,
    mesh=mesh,
    # Not used, but it must fit: mixup takes pairs of images.
    train=dataclasses.replace(
      config.train, batch_size=2 * unit, accumulation=1
    ),
    evaluations=grow(config.evaluations),
    fewshot=grow(config.fewshot),
  )
