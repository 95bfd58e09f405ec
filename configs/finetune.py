"""Fine-tuning: a trained model, a new head, a higher resolution.

Reproduces: full fine-tuning as in V-MoE (2106.05974) and in the public configs
of its authors (github.com/google-research/vmoe, vmoe/configs/vmoe_paper):
SGD with momentum 0.9, cosine schedule, gradients clipped at 10, no weight
decay, position embeddings resized, a new head that is zero.

  python -m vmoe_study train --workdir=DIR \\
    --config=configs/finetune.py:start=PRETRAINED_WORKDIR,backbone=B/16

and from a public checkpoint with

  P=gs://vmoe_checkpoints/vmoe_b16_imagenet21k_randaug_strong
  python -m vmoe_study train --workdir=DIR \\
    --config=configs/finetune.py:upstream=imagenet21k,kind=vmoe,start=$P

The arguments of configs/pretrain.py describe the model in `start`; capacity and
group may differ from its own, except for a soft router, whose slots are
parameters. By default the capacity of V-MoE's token choice is 1.5, with slots
rounded up to a multiple of 4. Further arguments:
  upstream   `data` of the pre-training; gives the arguments left out
  start      workdir, V-MoE prefix or .npz file; needed
  kind       checkpoint, vmoe or npz: what `start` is. A dense `start` with a
             router other than "dense" is upcycled
  data       a data set of `vmoe_study/data/dataset_specs.py`; imagenet2012
  size       pixels; 384
  steps      10,000
  rate       peak learning rate; 0.003

Data: that of `data`; imagenet2012 is also evaluated on imagenet2012_real and
imagenet_v2/matched-frequency.
Hardware: V-MoE-B/16 with 8 experts was fine-tuned on a TPU v3-32 (ImageNet) and
in about 10 minutes on a TPU v3-8 (CIFAR-10), according to its public config;
smoke runs on one CPU core.
Expected: the table "finetune" of `configs/tables.py`.
"""

import dataclasses

from configs import common, datasets, recipes
from vmoe_study.data.dataset_specs import DATASETS


@dataclasses.dataclass(frozen=True)
class Arguments(recipes.Arguments):
  """Arguments of this file; see the module's docstring."""

  upstream: str = ""
  start: str = ""
  kind: str = "checkpoint"
  data: str = "imagenet2012"
  size: int = 384
  steps: int = 10_000
  rate: float = 0.003

  def __post_init__(self):
    super().__post_init__()
    tuned = [name for name, r in DATASETS.items() if len(r.splits) == 3]
    common.check_choice("data", self.data, tuned)
    if self.upstream:
      common.check_choice("upstream", self.upstream, datasets.UPSTREAM)

  @property
  def pretraining_data(self) -> str:
    return self.upstream


def get_config(arguments: str = ""):
  """Returns the config; the module's docstring documents the arguments."""
  args = common.parse_arguments(arguments, Arguments)
  size, data = (16, "digits") if args.smoke else (args.size, args.data)
  train_ops, test_ops = f"inception_crop({size})|flip_lr", f"resize({size})"
  if args.smoke:
    train_ops = test_ops
  batch = recipes.SMOKE_BATCH if args.smoke else 1024
  return common.config_dict(
    name=f"{args.backbone} {args.router} fine-tuned",
    seed=args.seed,
    model=_model(args, DATASETS[data].num_classes),
    initialize={"kind": args.kind, "path": args.start},
    data=datasets.downstream(data, train_ops),
    train=_training(args),
    evaluations={
      name: {"data": spec, "batch_size": batch}
      for name, spec in datasets.downstream_evaluations(data, test_ops).items()
    },
  )


def _model(args: Arguments, num_classes: int) -> dict:
  """The model; a soft router keeps the number of slots it was trained with."""
  model = recipes.model(args, num_classes, token_capacity=1.5)
  if args.router == "soft":
    slots = recipes.slots_of_pretraining(args, 8 if args.smoke else 224)
    model["moe"]["options"]["slots_per_expert"] = slots
  model["moe"]["expert_dropout_rate"] = 0.0
  return model


def _training(args: Arguments) -> dict:
  spec = {
    "batch_size": 1024,
    "num_steps": args.steps,
    "loss": "softmax_xent",
    "optimizer": {"name": "sgd", "momentum": 0.9, "clip_norm": 10.0},
    "schedule": {
      "name": "cosine",
      "peak": args.rate,
      "end": 1e-5,
      "warmup_steps": args.steps // 20,
    },
    "report_every": 100,
    "evaluate_every": 1_000,
    "save_every": 1_000,
  }
  return recipes.smoke(spec) if args.smoke else spec
