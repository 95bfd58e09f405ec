"""The study at small scale: Han characters, tested in unseen fonts.

Reproduces: the router comparison of 2401.15969, with many classes, at minutes
per run on one CPU core. `configs/tables.py` lists its runs.

  python -m vmoe_study prepare glyphs/2000 glyphs/kana glyphs/hangul \\
    digits emoji
  python -m vmoe_study train --workdir=DIR \\
    --config=configs/glyphs.py:router=softmax_expert_choice,group=8,seed=1

Arguments, as NAME=VALUE with commas between:
  router, capacity, k, group, batch_priority, balance, seed   as in every recipe
  classes    number of characters
  width      of the model
  mlp        hidden size of MLPs and experts; 0 for 4 x width
  experts    in each of the two routed blocks, of four
  epochs     passes over the training images, one per character and design
  rate       peak learning rate
  decay      weight decay of kernels
  select     test on the designs of the validation split, to choose the recipe

Hardware: one CPU core. Expected: nothing is published at this scale; measured
results are in `notebooks/study/`.
"""

import dataclasses

from configs import common

SIZE = 28  # 16 patches.
TEST = f"resize({SIZE})|rgb|value_range(-1, 1)"
TRAIN = f"resize({SIZE})|pad_crop(2)|rgb|value_range(-1, 1)"
TRANSFER = {"glyphs/kana": 91, "glyphs/hangul": 200, "digits": 10, "emoji": 99}


@dataclasses.dataclass(frozen=True)
class Arguments(common.Arguments):
  """Arguments of this file; see the module's docstring."""

  classes: int = 2000
  width: int = 40
  mlp: int = 0
  experts: int = 8
  epochs: float = 4.0
  rate: float = 9e-3
  decay: float = 0.3
  select: bool = False


def get_config(arguments: str = ""):
  """Returns the config; the module's docstring documents the arguments."""
  args = common.parse_arguments(arguments, Arguments)
  name = f"glyphs/{args.classes}"
  test = "val" if args.select else "test"
  return common.config_dict(
    name=f"glyphs {args.router}",
    seed=args.seed,
    model={
      "fields": {
        "num_classes": args.classes,
        "patch_size": 7,
        "width": args.width,
        "depth": 4,
        "mlp_dim": args.mlp or 4 * args.width,
        "num_heads": 4,
        "pool": "gap",
        "posemb": "sincos2d",
      },
      "moe": common.moe(args, num_experts=args.experts, blocks="every 2"),
    },
    data=_data(name, "train", args.classes, TRAIN),
    train={
      "batch_size": 128,
      "num_epochs": args.epochs,
      "optimizer": {
        "weight_decay": (("kernel$", args.decay),),
        "clip_norm": 1.0,
      },
      "schedule": {"name": "cosine", "peak": args.rate, "warmup_steps": 400},
      "report_every": 100,
    },
    evaluations={
      "test": {
        "data": _data(name, test, args.classes, TEST),
        "batch_size": 1000,
      }
    },
    fewshot={
      name.split("/")[-1]: {
        "train": _data(name, "train", classes, TEST),
        "test": _data(name, "test", classes, TEST),
        "batch_size": 1000,
      }
      for name, classes in TRANSFER.items()
    },
    shots=(10,),
    draws=5,
  )


def _data(name: str, split: str, classes: int, ops: str):
  return {"name": name, "split": split, "ops": ops, "num_classes": classes}
