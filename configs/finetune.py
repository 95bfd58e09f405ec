"""Fine-tuning: a trained model, a new head, a higher resolution.

Reproduces: full fine-tuning as in V-MoE (2106.05974) and in the public configs
of its authors (github.com/google-research/vmoe, vmoe/configs/vmoe_paper):
SGD with momentum 0.9, cosine schedule, gradients clipped at 10, no weight
decay, position embeddings resized, a new head that is zero.

  python -m vmoe_study train --workdir=DIR --config=configs/finetune.py:\\
    start=PRETRAINED_WORKDIR,router=softmax_expert_choice,backbone=B/16
  python -m vmoe_study train --workdir=DIR --config=configs/finetune.py:\\
    start=gs://vmoe_checkpoints/vmoe_b16_imagenet21k_randaug_strong,kind=vmoe,\\
    backbone=B/16,router=softmax_token_choice,k=2,experts=8,group=8,capacity=1.5

(each --config as one word). The arguments of configs/pretrain.py say what
model `start` is; data, capacity and group may differ from its own (but for a soft
router, whose slots are parameters). Further arguments:
  start      workdir, V-MoE prefix or .npz file; needed
  kind       checkpoint, vmoe or npz: which of these. A dense `start` and a
             sparse router make an upcycled model.
  data       a data set of `vmoe_study/data/recipes.py`; imagenet2012
  size       pixels; 384
  steps      10,000
  rate       peak learning rate; 0.003

Hardware: V-MoE-B/16 with 8 experts was fine-tuned on a TPU v3-32 (ImageNet) and
in about 10 minutes on a TPU v3-8 (CIFAR-10), says its public config; smoke runs
on one CPU core. Expected: the table "finetune" of `configs/tables.py`.
"""

import dataclasses

from configs import common, datasets, recipes
from vmoe_study.data.recipes import RECIPES


@dataclasses.dataclass(frozen=True)
class Arguments(recipes.Arguments):
  """What is fine-tuned, and where to; see the module's docstring."""

  data: str = "imagenet2012"
  start: str = ""
  kind: str = "checkpoint"
  size: int = 384
  steps: int = 10_000
  rate: float = 0.003
