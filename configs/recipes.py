"""The recipes of V-MoE (2106.05974) and Soft MoE (2308.00951).

Numbers are those of the public configs of their authors
(github.com/google-research/vmoe), except where marked as our choice. The public
configs compute in float32; here blocks compute in bfloat16
(`--config.model.fields.dtype`, `residual_dtype`).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from configs import common
from configs.datasets import Upstream
from vmoe_study.nn.vit import backbone_sizes
from vmoe_study.routing.capacity import expert_capacity

SMOKE_SIZES = {
  "patch_size": 2,
  "width": 32,
  "depth": 2,
  "mlp_dim": 64,
  "num_heads": 2,
}
SMOKE_EXPERTS = 4
SMOKE_BATCH = 64

# Token choice in the public V-MoE configs; C is also a multiple of 4.
VMOE_CAPACITY = {
  "capacity_factor": 1.05,
  "capacity_rounding": "ceil",
  "capacity_multiple_of": 4,
}


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How the models of a public config are built and trained.

  The keys of a mapping by backbone are backbones, their letters, and "" for all
  others.

  Attributes:
    backbone: default backbone.
    router: default router.
    k: default number of experts per token, for token choice.
    group: default number of images routed together.
    experts: default number of experts, by backbone.
    blocks: routed blocks; "" for the last half.
    capacity: default capacity options of token choice.
    slots: default number of slots per expert of a soft router; 0 for one slot
      per token.
    fields: fields of the model.
    representation: whether a representation layer of the model's width precedes
      the head.
    head_bias: initial bias of the head; None for -log(classes).
    expert_dropout: dropout rate inside the experts only.
    batch_size: images per step.
    num_steps: number of steps by backbone, for data without `num_epochs`.
    weight_decay: see `OptimizerSpec`.
    soft_decay: weight decay with soft routers.
    clip_norm: see `OptimizerSpec`, by backbone.
    peak: peak learning rate by backbone.
    schedule: further fields of `ScheduleSpec`.
    evaluation_capacity: capacity factor of token choice in evaluations; 0 for
      that of training.
  """

  backbone: str
  router: str
  fields: Mapping[str, Any]
  experts: Mapping[str, int]
  num_steps: Mapping[str, int]
  weight_decay: tuple[tuple[str, float], ...]
  clip_norm: Mapping[str, float]
  peak: Mapping[str, float]
  schedule: Mapping[str, Any]
  k: int = 1
  group: int = 1
  blocks: str = ""
  capacity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  slots: int = 0
  representation: bool = False
  head_bias: float | None = None
  expert_dropout: float = 0.0
  batch_size: int = 4096
  soft_decay: tuple[tuple[str, float], ...] = ()
  evaluation_capacity: float = 0.0


VMOE = Recipe(
  backbone="B/32",
  router="softmax_token_choice",
  k=2,
  group=8,
  experts={"": 32},
  blocks="every 2",
  capacity=VMOE_CAPACITY,
  fields={"pool": "token"},
  representation=True,
  num_steps={"": 520_000},  # Our choice, as is the batch size.
  weight_decay=((".*", 0.1),),
  clip_norm={"H": 10.0, "": 0.0},
  peak={
    "S8/32": 1e-3,
    "B/32": 8e-4,
    "B/16": 8e-4,
    "L/32": 6e-4,
    "L/16": 4e-4,
    "H/14": 3e-4,
  },
  schedule={"name": "linear", "end": 1e-5, "warmup_steps": 10_000},
)
_VMOE_ON_IMAGENET = dataclasses.replace(
  VMOE,
  experts={"": 8},
  weight_decay=(("kernel$", 0.1),),
  clip_norm={"": 1.0},
)
SOFTMOE = Recipe(
  backbone="S/16",
  router="soft",
  experts={"S/16": 128, "B/16": 128, "L/16": 128}
  | {"S/14": 256, "H/14": 256, "": 32},  # Others: our choice.
  slots=1,
  fields={"pool": "gap", "qk_norm": True},
  num_steps={"H": 2_000_000, "": 4_000_000},
  weight_decay=(("head/kernel$", 3.0), ("kernel$", 0.03)),
  soft_decay=(("Moe/Router/scale$", 0.03),),
  clip_norm={"": 1.0},
  peak={"": 1e-3},
  schedule={
    "name": "rsqrt",
    "warmup_steps": 10_000,
    "timescale": 10_000,
    "cooldown_steps": 50_000,
  },
)
# By recipe and data; for other data the first one is used, by our choice.
RECIPES: dict[str, dict[str, Recipe]] = {
  "vmoe": {
    "jft": VMOE,
    "imagenet21k": dataclasses.replace(
      _VMOE_ON_IMAGENET, backbone="B/16", representation=False, head_bias=-10.0
    ),
    "imagenet1k": dataclasses.replace(
      _VMOE_ON_IMAGENET,
      backbone="S8/32",
      blocks="last 2 odd",
      expert_dropout=0.2,
      batch_size=8192,
      peak={"": 3e-3},
      evaluation_capacity=4.0,
    ),
  },
  "softmoe": {"jft4b": SOFTMOE},
}


@dataclasses.dataclass(frozen=True)
class Arguments(common.Arguments):
  """Arguments that describe the model; the recipe gives the defaults.

  Attributes:
    router: see `common.Arguments`.
    capacity: capacity factor; the number of slots is rounded to the nearest. By
      default token choice has the capacity of the recipe, with its rounding.
    k: see `common.Arguments`.
    group: images routed together.
    backbone: S8/32 (V-MoE's 8-layer S), B/32, B/16, L/16, S/16, H/14, ...
    recipe: "vmoe" or "softmoe": model details, optimizer and schedule.
    experts: E, of every MoE block.
    mlp: hidden size of MLPs and experts in place of the backbone's.
    smoke: whether to train a tiny model on `digits`, with all parts of the
      recipe.
  """

  router: str = ""
  capacity: float = 0.0
  k: int = 0
  group: int = 0
  backbone: str = ""
  recipe: str = "vmoe"
  experts: int = 0
  mlp: int = 0
  smoke: bool = False

  def __post_init__(self):
    common.check_choice("recipe", self.recipe, RECIPES)
    found = self.published
    given = {"router": found.router, "backbone": found.backbone}
    self._complete(given)
    given = {"experts": by_backbone(found.experts, self.backbone), "group": 1}
    if common.tokens_choose(self.router):
      given |= {"k": found.k, "group": found.group}
    self._complete(given)

  def _complete(self, values: dict[str, Any]) -> None:
    """Fills in the arguments that were left out."""
    for name, value in values.items():
      if not getattr(self, name):
        object.__setattr__(self, name, value)

  @property
  def pretraining_data(self) -> str:
    """The name of the pre-training data; "" for that of the recipe."""
    return ""

  @property
  def published(self) -> Recipe:
    """The published recipe for these data."""
    recipes = RECIPES[self.recipe]
    return recipes.get(self.pretraining_data, next(iter(recipes.values())))

  @property
  def sizes(self) -> dict[str, int]:
    """The sizes of the backbone, by field of `VisionTransformer`."""
    return SMOKE_SIZES if self.smoke else backbone_sizes(self.backbone)

  @property
  def num_experts(self) -> int:
    """E; four in a smoke test."""
    return SMOKE_EXPERTS if self.smoke else self.experts


def by_backbone(values: Mapping[str, Any], backbone: str) -> Any:
  """The value for a backbone such as "H/14": under "H/14", "H" or ""."""
  for key in (backbone, backbone.partition("/")[0], ""):
    if key in values:
      return values[key]
  return common.check_choice("backbone", backbone, values)


def model(
  args: Arguments, num_classes: int, token_capacity: float = 0.0
) -> dict[str, Any]:
  """Makes the section `model`, without a representation layer.

  Args:
    args: arguments of the config.
    num_classes: number of classes of the head.
    token_capacity: capacity factor of token choice in place of the recipe's.
  """
  recipe = args.published
  fields = {
    "num_classes": num_classes,
    "head_bias_init": -math.log(num_classes),
  }
  fields |= args.sizes if args.smoke else {"dtype": "bfloat16"}
  if args.mlp:
    fields["mlp_dim"] = args.mlp
  half = f"last {args.sizes['depth'] // 2}"
  return {
    "backbone": "" if args.smoke else args.backbone,
    "fields": fields | dict(recipe.fields),
    "moe": common.moe(
      args,
      num_experts=args.num_experts,
      blocks="every 2" if args.smoke else recipe.blocks or half,
      capacity=_capacity(args, token_capacity),
      shared_expert_init=True,
      expert_dropout_rate=recipe.expert_dropout,
    ),
  }


def _capacity(args: Arguments, token_capacity: float) -> dict[str, Any]:
  """The options that set the capacity of the router."""
  recipe = args.published
  if args.capacity:
    return {"capacity_factor": args.capacity}
  if common.tokens_choose(args.router) and recipe.capacity:
    factor = token_capacity or recipe.capacity["capacity_factor"]
    return {**recipe.capacity, "capacity_factor": factor}
  if args.router == "soft" and recipe.slots:
    return {"slots_per_expert": recipe.slots}
  return {"capacity_factor": 1.0}


def pretraining_model(args: Arguments, upstream: Upstream) -> dict[str, Any]:
  """Makes the section `model` for training from scratch."""
  spec, recipe = model(args, upstream.num_classes), args.published
  if recipe.head_bias is not None:
    spec["fields"]["head_bias_init"] = recipe.head_bias
  if recipe.representation:
    spec["fields"]["representation_size"] = args.sizes["width"]
  return spec


def slots_of_pretraining(args: Arguments, image_size: int) -> int:
  """C of a Soft MoE trained at this resolution."""
  capacity = _capacity(args, 0.0)
  if "slots_per_expert" in capacity:
    return capacity["slots_per_expert"]
  tokens = (image_size // args.sizes["patch_size"]) ** 2
  tokens += args.published.fields["pool"] == "token"
  return expert_capacity(tokens * args.group, args.num_experts, **capacity)


def evaluation_capacity(args: Arguments) -> float:
  """Capacity factor of evaluations; 0 for that of training."""
  tokens_choose = common.tokens_choose(args.router)
  return args.published.evaluation_capacity if tokens_choose else 0.0


def pretraining(args: Arguments, upstream: Upstream) -> dict[str, Any]:
  """Makes the section `train` for training from scratch."""
  recipe, backbone = args.published, args.backbone
  steps = 0 if upstream.num_epochs else by_backbone(recipe.num_steps, backbone)
  spec = {
    "batch_size": recipe.batch_size,
    "num_steps": steps,
    "num_epochs": upstream.num_epochs,
    "loss": "sigmoid_xent",
    "mixup": upstream.mixup,
    "mixup_within": "device",
    "optimizer": {
      "name": "adam",
      "beta1": 0.9,
      "beta2": 0.999,
      "weight_decay": recipe.weight_decay
      + (recipe.soft_decay if args.router == "soft" else ()),
      "clip_norm": by_backbone(recipe.clip_norm, backbone),
    },
    "schedule": {
      "peak": by_backbone(recipe.peak, backbone),
      **recipe.schedule,
    },
    "report_every": 100,
    "evaluate_every": 10_000,
    "save_every": 5_000,
  }
  return smoke(spec) if args.smoke else spec


def smoke(spec: dict[str, Any]) -> dict[str, Any]:
  """A few steps of the same training."""
  schedule = {**spec["schedule"], "warmup_steps": 0, "timescale": 10}
  if schedule.get("cooldown_steps"):
    schedule["cooldown_steps"] = 1
  length = {"batch_size": SMOKE_BATCH, "num_steps": 4, "num_epochs": 0.0}
  every = {"report_every": 2, "evaluate_every": 0, "save_every": 0}
  return {**spec, **length, **every, "schedule": schedule}
