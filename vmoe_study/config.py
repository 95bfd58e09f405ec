"""Turns nested mappings into a typed, checked `Config`, once.

The code that uses a config never sees a ConfigDict. Unknown names, wrong types
and values out of range fail here, with the field, the value and the rule,
before any device is touched.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from vmoe_study import options
from vmoe_study.data.spec import DataSpec, MixtureSpec
from vmoe_study.evaluation.draws import DrawRule
from vmoe_study.evaluation.spec import EvaluationSpec, FewshotSpec
from vmoe_study.files.location import expand
from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.spec import ModelSpec
from vmoe_study.nn.vit import VisionTransformer
from vmoe_study.nn.zoo import ROUTERS
from vmoe_study.parallel.mesh import MeshSpec
from vmoe_study.training import optax_names
from vmoe_study.training.optimizer import check_schedule
from vmoe_study.training.spec import TrainSpec


@dataclasses.dataclass(frozen=True)
class InitializeSpec:
  """The source of a new run's initial parameters; see `run.initialize`.

  Attributes:
    kind: "random", or what `path` is: the workdir of a run ("checkpoint"), the
      prefix of a public V-MoE checkpoint ("vmoe") or the file of a ViT ("npz").
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
class Config:
  """The config of a run.

  Attributes:
    name: name of the recipe; shown in tables.
    seed: seed of initial parameters, data order and all noise.
    model: see `ModelSpec`.
    data: training data; with a mixture, the main data set.
    train: see `TrainSpec`.
    mixture: further training data sets, by name.
    initialize: where initial parameters come from.
    evaluations: evaluations by name; may be empty.
    fewshot: few-shot tasks by name; all share one penalty per number of shots.
    shots: images per class of the few-shot evaluations.
    draws: number of random selections of these images; evaluations average over
      them.
    draw_seed: seed of these selections, independent of the run's `seed`.
    draw_rule: how a selection follows from `draw_seed`; see `evaluation.draws`.
    evaluation_capacity: capacity factor of sparse routers in all evaluations; 0
      for that of training.
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
    """Checks names, as metrics are called NAME/accuracy, fewshot/NAME/5shot."""
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
