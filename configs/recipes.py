"""The recipes of V-MoE (2106.05974) and Soft MoE (2308.00951).

Numbers are those of the papers and of the public configs of their authors
(github.com/google-research/vmoe), except where marked as our choice.
"""

import dataclasses
import math
from typing import Any

from configs import common
from configs.datasets import Upstream
from vmoe_study.nn.vit import variant
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

# Peak learning rates of the V-MoE recipe (public V-MoE configs).
VMOE_RATES = {
  "S8/32": 1e-3,
  "B/32": 8e-4,
  "B/16": 8e-4,
  "L/32": 6e-4,
  "L/16": 4e-4,
  "H/14": 3e-4,
}
# On JFT. Soft MoE: 2308.00951, Table 9. V-MoE: our choice.
JFT_STEPS = {"vmoe": 520_000, "softmoe": 300_000}


@dataclasses.dataclass(frozen=True)
class Arguments(common.Arguments):
  """Arguments that describe the model.

  Attributes:
    backbone: S8/32 (V-MoE's 8-layer S), B/32, B/16, L/16, S/16, H/14, ...
    recipe: "vmoe" or "softmoe": model details, optimizer and schedule.
    experts: E, of every MoE block.
    smoke: whether to train a tiny model on `digits`, with all parts of the
      recipe.
  """

  backbone: str = "B/32"
  recipe: str = "vmoe"
  experts: int = 32
  smoke: bool = False

  def __post_init__(self):
    common.check_choice("recipe", self.recipe, JFT_STEPS)

  @property
  def sizes(self) -> dict[str, int]:
    """The sizes of the backbone, by field of `VisionTransformer`."""
    return SMOKE_SIZES if self.smoke else variant(self.backbone)

  @property
  def num_experts(self) -> int:
    """E; four in a smoke test."""
    return SMOKE_EXPERTS if self.smoke else self.experts


def model(args: Arguments, num_classes: int) -> dict[str, Any]:
  """The `model` of a config, without a representation layer."""
  fields: dict[str, Any] = {"num_classes": num_classes}
  fields |= args.sizes if args.smoke else {"dtype": "bfloat16"}
  if args.recipe == "vmoe":
    blocks = "every 2"
    fields["pool"] = "token"
  else:
    blocks = f"last {args.sizes['depth'] // 2}"
    fields |= {"pool": "gap", "qk_norm": True}
  return {
    "backbone": "" if args.smoke else args.backbone,
    "fields": fields,
    "moe": common.moe(
      args, num_experts=args.num_experts, blocks=blocks, shared_expert_init=True
    ),
  }


def pretraining_model(args: Arguments, upstream: Upstream) -> dict[str, Any]:
  """The `model` of a config, to be trained from scratch."""
  classes = upstream.num_classes
  spec = model(args, classes)
  spec["fields"]["head_bias_init"] = -math.log(classes)
  if args.recipe == "vmoe" and upstream.representation:
    spec["fields"]["representation_size"] = args.sizes["width"]
  return spec


def num_slots(args: Arguments, image_size: int) -> int:
  """C of a Soft MoE trained at this resolution."""
  tokens = (image_size // args.sizes["patch_size"]) ** 2
  tokens += args.recipe == "vmoe"  # its class token
  return expert_capacity(tokens * args.group, args.num_experts, args.capacity)


def evaluation_capacity(args: Arguments, data: str) -> float:
  """4 as in the public V-MoE config for ImageNet-1k; else 0, as in training."""
  tokens_choose = args.router.endswith("_token_choice")
  vmoe = args.recipe == "vmoe" and data == "imagenet1k"
  return 4.0 if vmoe and tokens_choose else 0.0


def pretraining(args: Arguments, upstream: Upstream) -> dict[str, Any]:
  """The `train` of a config, for training from scratch."""
  steps = 0 if upstream.num_epochs else JFT_STEPS[args.recipe]
  spec = {
    "batch_size": 4096,
    "num_steps": steps,
    "num_epochs": upstream.num_epochs,
    "loss": "sigmoid_xent",
    "mixup": upstream.mixup,
    "optimizer": {"name": "adam", "beta1": 0.9, "beta2": 0.999},
    "report_every": 100,
    "evaluate_every": 10_000,
    "save_every": 5_000,
  }
  recipe = {"vmoe": _vmoe_training, "softmoe": _softmoe_training}[args.recipe]
  recipe(args, upstream, spec)
  return smoke(spec) if args.smoke else spec


def _vmoe_training(
  args: Arguments, upstream: Upstream, spec: dict[str, Any]
) -> None:
  """On JFT all parameters decay, and only the H backbone clips gradients.

  On other data only kernels decay, and all backbones clip.
  """
  common.check_choice("backbone", args.backbone, VMOE_RATES)
  on_jft = upstream.num_epochs == 0
  clip = (10.0 if args.backbone.startswith("H") else 0.0) if on_jft else 1.0
  decay = ((".*" if on_jft else "kernel$", 0.1),)
  spec["optimizer"] |= {"weight_decay": decay, "clip_norm": clip}
  spec["schedule"] = {
    "name": "linear",
    "peak": VMOE_RATES[args.backbone],
    "end": 1e-5,
    "warmup_steps": 10_000,
  }


def _softmoe_training(
  args: Arguments, upstream: Upstream, spec: dict[str, Any]
) -> None:
  """Soft routers have no kernel: their scale decays like one."""
  decay = [("head/kernel$", 3.0), ("kernel$", 0.03)]
  if args.router == "soft":
    decay.append(("Moe/Router/scale$", 0.03))
  spec["optimizer"] |= {"weight_decay": tuple(decay), "clip_norm": 1.0}
  spec["schedule"] = {
    "name": "rsqrt",
    "peak": 1e-3,
    "warmup_steps": 10_000,
    "timescale": 10_000,
    "cooldown_steps": 50_000,
  }


def smoke(spec: dict[str, Any]) -> dict[str, Any]:
  """A few steps of the same training."""
  schedule = {**spec["schedule"], "warmup_steps": 0, "timescale": 10}
  if schedule.get("cooldown_steps"):
    schedule["cooldown_steps"] = 1
  length = {"batch_size": SMOKE_BATCH, "num_steps": 4, "num_epochs": 0.0}
  every = {"report_every": 2, "evaluate_every": 0, "save_every": 0}
  return {**spec, **length, **every, "schedule": schedule}
