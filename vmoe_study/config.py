"""Turns nested mappings into a typed, checked `Config`, once.

The code that uses a config never sees a ConfigDict. Unknown names, wrong types
and values out of range fail here, with the field, the value and the rule,
before any device is touched.
"""

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from vmoe_study import options
from vmoe_study.data.spec import DataSpec
from vmoe_study.evaluation.draws import DrawRule
from vmoe_study.files.location import expand
from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.vit import SIZES, VisionTransformer, moe_blocks, variant
from vmoe_study.nn.zoo import ROUTERS
from vmoe_study.parallel.mesh import MeshSpec
from vmoe_study.training import optax_names
from vmoe_study.training.best import BestSpec
from vmoe_study.training.health import HealthSpec
from vmoe_study.training.optimizer import (
  OptimizerSpec,
  ScheduleSpec,
  check_schedule,
)
from vmoe_study.training.trackers import TRACKERS

# Upper bounds far beyond any use. Larger values would take minutes, or all
# memory, before anything else refused them.
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
  "max_experts_per_token": 10**5,
  "mean_experts_per_token": 10**5,
  "num_rounds": 10**5,
  "projection_dim": 10**5,
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
  "read_threads": 1000,
  "batches_ahead": 16,  # JAX's CPU collectives deadlock above 31 programs.
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
  """The fields of a `VisionTransformer`.

  Attributes:
    backbone: a published size such as "B/16"; empty if `fields` has all sizes.
    fields: further fields of `VisionTransformer`, except `moe` and `exchange`.
      They take precedence over the backbone's.
    moe: the routed blocks; router "dense" for none.
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
    self.moe.check_router()
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
    """Valid names of `fields`."""
    own = {"parent", "name", "moe", "exchange"}
    return {f.name for f in dataclasses.fields(VisionTransformer)} - own

  @property
  def is_routed(self) -> bool:
    """Whether there are MoE blocks."""
    return self.moe.is_routed

  def arguments(self) -> dict[str, Any]:
    """Arguments of `VisionTransformer`, except the exchange."""
    sizes = variant(self.backbone) if self.backbone else {}
    return {**sizes, **self.fields, "moe": self.moe}


@dataclasses.dataclass(frozen=True)
class InitializeSpec:
  """Where the parameters of a fresh run come from; see `run.initialize`.

  Attributes:
    kind: "random", or the kind of `path`: "checkpoint" is the workdir of a run,
      "vmoe" the prefix of a public V-MoE checkpoint, "npz" the file of a ViT.
    path: local path or URL; empty for "random".
  """

  kind: Literal["random", "checkpoint", "vmoe", "npz"] = "random"
  path: str = ""

  def __post_init__(self):
    if (self.kind == "random") == bool(self.path):
      raise ValueError(
        f"kind={self.kind!r}, path={self.path!r}: 'checkpoint', 'vmoe' and "
        "'npz' need a path, 'random' takes none. Change either."
      )
    if self.path:
      any_url = self.kind in ("vmoe", "npz")
      object.__setattr__(self, "path", expand("path", self.path, any_url))


@dataclasses.dataclass(frozen=True)
class MixtureSpec:
  """A further training data set, mixed with the main one.

  Attributes:
    data: the data set and its preprocessing.
    weight: examples of it per example of the main data set.
  """

  data: DataSpec
  weight: float


@dataclasses.dataclass(frozen=True)
class TrainSpec:
  """Length, batches, loss and optimizer of a training run.

  Attributes:
    batch_size: images per step, over all hosts.
    num_steps: updates. Give either this or `num_epochs`.
    num_epochs: passes over the training data.
    loss: "softmax_xent", or "sigmoid_xent" for many labels per image.
    optimizer: see `OptimizerSpec`.
    schedule: see `ScheduleSpec`.
    accumulation: number of parts that each batch is computed in, in sequence.
    ema_decay: of an exponential moving average of the parameters, as 0.999. It
      starts at the initial ones, and the run is evaluated with it, exported and
      fine-tuned from it; 0 for none. States of routers are not averaged.
    mixup: parameter of mixup's Beta distribution; 0 for no mixup.
    mixup_within: which images are blended: the two of a "pair", with one weight
      for the batch; or, as in V-MoE, each with the next one of its "device",
      with one weight per device. See `data.mixup`.
    shuffle: "full", "blocks" to read neighbouring examples together, or "auto",
      which is "blocks" for data in an object store; see `data.order`.
    num_workers: worker processes per host that read and decode images; 0 uses
      threads only. "auto": all cores that the process may use but one, and 0
      where the model itself is computed by these cores.
    read_threads: requests to an object store that a worker has open at a time.
    batches_ahead: batches that may wait on the devices, beyond the one that is
      trained on.
    report_every: steps between training metrics.
    evaluate_every: steps between evaluations; 0 evaluates at the end only.
    save_every: steps between checkpoints; 0 saves at the end only. There is
      also one before every evaluation.
    keep: number of newest checkpoints to keep.
    keep_every: checkpoints at multiples of this step are never deleted; 0 for
      none.
    trackers: "wandb" and "aim", beside TensorBoard's files; see
      `training.trackers`.
    on_save_error: what to do if a checkpoint or metrics cannot be written, for
      example on a full disk: "stop", or "continue" without it. If the last
      checkpoint cannot be saved, the run always fails.
    best: see `BestSpec`; the best model is kept in the folder `best` of the
      workdir.
    health: see `HealthSpec`.
  """

  batch_size: int
  num_steps: int = 0
  num_epochs: float = 0.0
  loss: Literal["softmax_xent", "sigmoid_xent"] = "softmax_xent"
  optimizer: OptimizerSpec = dataclasses.field(default_factory=OptimizerSpec)
  schedule: ScheduleSpec = dataclasses.field(default_factory=ScheduleSpec)
  accumulation: int = 1
  ema_decay: float = 0.0
  mixup: float = 0.0
  mixup_within: Literal["pair", "device"] = "pair"
  shuffle: Literal["auto", "full", "blocks"] = "auto"
  num_workers: int | str = "auto"
  read_threads: int = 16
  batches_ahead: int = 2
  report_every: int = 100
  evaluate_every: int = 0
  save_every: int = 0
  keep: int = 2
  keep_every: int = 0
  trackers: tuple[str, ...] = ()
  on_save_error: Literal["stop", "continue"] = "stop"
  best: BestSpec = dataclasses.field(default_factory=BestSpec)
  health: HealthSpec = dataclasses.field(default_factory=HealthSpec)

  def __post_init__(self):
    if str(self.num_workers).isdigit():  # Also "2", of a command line.
      object.__setattr__(self, "num_workers", int(self.num_workers))
    elif self.num_workers != "auto":
      raise ValueError(
        f"num_workers={self.num_workers!r}: must be 'auto', or a number of "
        "processes, 0 or more. Change it to one."
      )
    for name in ["batch_size", "accumulation", "report_every", "keep"]:
      options.check_least(name, getattr(self, name), 1)
    options.check_least("read_threads", self.read_threads, 1)
    if not 0 <= self.ema_decay < 1:
      raise ValueError(f"ema_decay={self.ema_decay}: must be in [0, 1).")
    for name in ("mixup", "batches_ahead"):
      options.check_least(name, getattr(self, name), 0)
    for name in ("num_steps", "num_epochs"):
      options.check_least(name, getattr(self, name), 0)
    for name in ("evaluate_every", "save_every", "keep_every"):
      options.check_least(name, getattr(self, name), 0)
    _check_largest("train", vars(self))
    options.check_names("trackers", self.trackers, TRACKERS)
    if self.best.patience and not self.evaluate_every:
      raise ValueError(
        f"best.patience={self.best.patience}: counts evaluations, but there is "
        "only the last one. Set evaluate_every to a number of steps."
      )
    if self.mixup and self.mixup_within == "pair" and self.batch_size % 2:
      raise ValueError(
        f"batch_size={self.batch_size}: must be even, as mixup={self.mixup} "
        "blends pairs of images. Add or remove one image."
      )
    if (self.num_steps > 0) == (self.num_epochs > 0):
      raise ValueError(
        f"num_steps={self.num_steps}, num_epochs={self.num_epochs}: exactly "
        "one must be above 0. Set the other to 0."
      )

  def total_steps(self, num_examples: int) -> int:
    """Number of updates of the whole run."""
    if self.num_steps:
      return self.num_steps
    return max(1, math.ceil(self.num_epochs * num_examples / self.batch_size))


@dataclasses.dataclass(frozen=True)
class EvaluationSpec:
  """Accuracy and loss on a data set.

  Padding images fill up the last batch. They are not counted, but if images are
  routed in groups, they compete for slots with the real images of their group.
  There is no padding if `batch_size` divides the number of images.

  Attributes:
    data: the data set and its preprocessing.
    batch_size: images at a time, over all hosts.
  """

  data: DataSpec
  batch_size: int

  def __post_init__(self):
    options.check_least("batch_size", self.batch_size, 1)
    _check_largest("evaluation", vars(self))


@dataclasses.dataclass(frozen=True)
class FewshotSpec:
  """k-shot transfer to a data set; see `evaluation.fewshot`.

  Attributes:
    train: source of the k images per class.
    test: images that accuracy is measured on.
    batch_size: images at a time, over all hosts.
  """

  train: DataSpec
  test: DataSpec
  batch_size: int

  def __post_init__(self):
    options.check_least("batch_size", self.batch_size, 1)
    _check_largest("fewshot", vars(self))
    for name in ("train", "test"):
      _check_largest(f"fewshot.{name}", vars(getattr(self, name)))


@dataclasses.dataclass(frozen=True)
class Config:
  """A run.

  Attributes:
    name: of the recipe; shown in tables.
    seed: of initial parameters, data order and all noise.
    model: see `ModelSpec`.
    data: training data; with a mixture, the main data set.
    train: see `TrainSpec`.
    mixture: further training data sets, by name.
    initialize: where initial parameters come from.
    evaluations: by name; may be empty.
    fewshot: by name; all tasks share one penalty per number of shots.
    shots: images per class of the few-shot evaluations.
    draws: selections of these images that the evaluations average over.
    draw_seed: of these selections, whatever the seed of the run.
    draw_rule: how they follow from it, see `evaluation.draws`.
    evaluation_capacity: capacity factor of sparse routers in all evaluations;
      0 for the factor of training.
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
  draws: int = 1
  draw_seed: int = 0
  draw_rule: DrawRule = "seed"
  evaluation_capacity: float = 0.0
  mesh: MeshSpec = dataclasses.field(default_factory=MeshSpec)

  def problems(self) -> Iterator[str]:
    """Yields messages: values out of range, fields that contradict others."""
    if not 0 <= self.seed < 2**32:
      yield f"seed={self.seed}: must be in [0, 2**32)."
    if not 0 <= self.draw_seed < 2**32:
      yield f"draw_seed={self.draw_seed}: must be in [0, 2**32)."
    for shots in self.shots:
      if shots < 1:
        yield f"shots={shots!r}: must be at least 1."
    if not 1 <= self.draws <= 1000:
      yield f"draws={self.draws}: must be from 1 to 1000."
    yield from self._name_problems()
    yield from self._class_problems()
    if self.train.num_steps:
      try:
        check_schedule(self.train.schedule, self.train.num_steps)
      except ValueError as error:
        yield str(error)
    yield from self._best_problems()
    yield from self._evaluation_capacity_problems()

  def _name_problems(self) -> Iterator[str]:
    """Names of metrics are NAME/accuracy, fewshot/NAME/5shot, train/loss."""
    for kind in ("evaluations", "fewshot"):
      for name in getattr(self, kind):
        if not name or "/" in name:
          yield (
            f"{kind}.{name}: the name {name!r} must not be empty or contain "
            "'/', as it is a part of metric names. Rename it."
          )
    for name in sorted({"train", "fewshot"} & self.evaluations.keys()):
      yield (
        f"evaluations.{name}: must not have this name, as other metrics begin "
        f"with '{name}/'. Rename it, for example {name}_accuracy."
      )

  def _best_problems(self) -> Iterator[str]:
    metric = self.train.best.metric
    valid = [
      f"{name}/{kind}"
      for name in self.evaluations
      for kind in ("accuracy", "loss")
    ] + [
      f"fewshot/{name}/{shots}shot"
      for name in self.fewshot
      for shots in self.shots
    ]
    if metric and metric not in valid:
      yield (
        f"train.best.metric={metric!r}: must be a metric of an evaluation."
        f"{options.did_you_mean(metric, valid)} Valid metrics: "
        f"{', '.join(valid) or 'none'}."
      )
    if metric and "best" in self.evaluations:
      yield (
        "evaluations.best: must not have this name, as the best value is "
        f"written as 'best/{metric}'. Rename it, for example best_accuracy."
      )

  def _class_problems(self) -> Iterator[str]:
    classes = self.model.fields["num_classes"]
    upstream = {"data": self.data}
    for kind in ("mixture", "evaluations"):
      for name, spec in getattr(self, kind).items():
        upstream[f"{kind}.{name}.data"] = spec.data
    for where, data in upstream.items():
      if data.num_classes != classes:
        yield (
          f"{where}.num_classes={data.num_classes}: must be "
          f"model.fields.num_classes={classes}, the size of the model's head. "
          "Change either."
        )

  def _evaluation_capacity_problems(self) -> Iterator[str]:
    factor, moe = self.evaluation_capacity, self.model.moe
    if factor < 0:
      yield f"evaluation_capacity={factor}: must be 0 or more."
    if factor and not moe.is_sparse:
      yield (
        f"evaluation_capacity={factor}: must be 0 with router {moe.router!r}, "
        "which has no capacity to change. Set 0."
      )

  def to_dict(self) -> dict[str, Any]:
    """The completed config: nested dicts with every default written out.

    `parse` turns it back into an equal `Config`. Once saved, it does not depend
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
    optimizer = config["train"]["optimizer"]
    if optimizer["name"] in optax_names.NAMES:
      defaults = optax_names.default_arguments(optimizer["name"])
      optimizer["arguments"] = defaults | optimizer["arguments"]
    return config

  @property
  def evaluation_moe(self) -> MoeOptions:
    """The routed blocks in evaluation, with `evaluation_capacity`."""
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
  """Makes a checked `Config` from nested mappings: a ConfigDict, or JSON.

  Raises:
    OptionsError: names every field that is wrong.
  """
  config = options.build(Config, "config", values)
  if problems := [f"config: {problem}" for problem in config.problems()]:
    raise options.OptionsError(problems)
  return config


def check_batches(config: Config, num_devices: int) -> None:
  """Checks that devices and routing groups divide every batch.

  Raises:
    OptionsError: names every batch size that does not fit, and the next one
      that does.
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
      f"model.moe.options.num_experts={num_experts}: must be a multiple of "
      f"mesh.expert={shape['expert']}, the devices that share the experts. "
      "Change either."
    )
  train = config.train
  if train.batch_size % train.accumulation:
    yield (
      f"train.batch_size={train.batch_size}: must be a multiple of "
      f"train.accumulation={train.accumulation}. Change either."
    )
  sizes = {"train.batch_size": train.batch_size // train.accumulation}
  for kind in ("evaluations", "fewshot"):
    for name, spec in getattr(config, kind).items():
      sizes[f"{kind}.{name}.batch_size"] = spec.batch_size
  unit = num_devices * config.group_images
  for where, size in sizes.items():
    if size < 1 or size % unit:
      yield (
        f"{where}={size}: {size} images must be a multiple of {num_devices} "
        f"devices x {config.group_images} images per group = {unit}. The next "
        f"multiple is {max(-(-size // unit), 1) * unit}."
      )


def fit_to_devices(config: Config, num_devices: int) -> Config:
  """Adapts a config to evaluation on this number of devices.

  Experts are sharded over as many devices as the mesh and their number allow,
  and batch sizes grow to the next multiple. The metrics stay the same.
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
    # Not used, but checked: it must fit the devices, and mixup takes pairs.
    train=dataclasses.replace(
      config.train, batch_size=2 * unit, accumulation=1
    ),
    evaluations=grow(config.evaluations),
    fewshot=grow(config.fewshot),
  )
