"""The study on a laptop: Fashion-MNIST, with transfer to digits and emoji.

Reproduces: the router comparison of 2401.15969, at a scale where all of it runs
in hours on two CPU cores. `configs/tables.py` lists its runs.

  python -m vmoe_study prepare fashion_mnist digits emoji
  python -m vmoe_study train --workdir=DIR \\
    --config=configs/laptop.py:router=softmax_expert_choice,group=8,seed=1
  python -m vmoe_study sweep configs/tables.py:laptop --seeds=5 --root=DIR

The recipe was chosen on held-out images, with seed 0, by

  python -m vmoe_study sweep configs/tables.py:laptop_rates --root=DIR
  python -m vmoe_study sweep configs/tables.py:laptop_balance --root=DIR

Every router was tried with four rates, at a balance of 0.005: 4e-3 is the best
of 1e-3, 2e-3, 4e-3 and 8e-3 for each of them and for the dense model. At this
rate, a balance of 0.05 is the best of 0, 0.0005, 0.005 and 0.05 for both
routers of token choice (`notebooks/study/balance`); larger ones were not tried.
The table `laptop_untuned` keeps 0.005, so that token choice has no more tuning
trials than the others. Two epochs are what the time for the whole grid allows.

Arguments, as NAME=VALUE with commas between:
  router, capacity, k, group, batch_priority, seed   as in every recipe
  epochs     passes over the training images
  rate       peak learning rate
  balance    weight of the importance and of the load loss, for token choice;
             0.05 for softmax and Sinkhorn token choice
  select     train on 54,000 images and test on the 6,000 that are held out of
             the training split, to choose the recipe; else train on all 60,000
             and test on the 10,000 of the test split

Hardware: two CPU cores. Expected: nothing is published at this scale; measured
results are in `notebooks/study/`.
"""

import dataclasses

from configs import common

SIZE = 28
BALANCE_TUNED = ("softmax_token_choice", "sinkhorn_token_choice")
IMAGES = f"resize({SIZE})|rgb|value_range(-1, 1)"


@dataclasses.dataclass(frozen=True)
class Arguments(common.Arguments):
  """Arguments of this file; see the module's docstring."""

  epochs: float = 2.0
  rate: float = 4e-3
  select: bool = False


def get_config(arguments: str = ""):
  """Returns the config; the module's docstring documents the arguments."""
  args = common.parse_arguments(arguments, Arguments)
  splits = ("train[:54000]", "train[54000:]") if args.select else ()
  train, test = splits or ("train", "test")
  if args.balance is None and args.router in BALANCE_TUNED:
    args = dataclasses.replace(args, balance=0.05)
  return common.config_dict(
    name=f"laptop {args.router}",
    seed=args.seed,
    model={
      "fields": {
        "num_classes": 10,
        "patch_size": 7,
        "width": 64,
        "depth": 4,
        "mlp_dim": 128,
        "num_heads": 4,
        "pool": "gap",
      },
      "moe": common.moe(args, num_experts=16, blocks="every 2"),
    },
    data=_data("fashion_mnist", train, 10),
    train={
      "batch_size": 200,
      "num_epochs": args.epochs,
      "optimizer": {"weight_decay": (("kernel$", 0.03),), "clip_norm": 1.0},
      "schedule": {"name": "cosine", "peak": args.rate, "warmup_steps": 100},
      "report_every": 100,
    },
    evaluations={
      "test": {
        "data": _data("fashion_mnist", test, 10),
        "batch_size": 1000,
      }
    },
    fewshot={
      name: {
        "train": _data(name, "train", classes),
        "test": _data(name, "test", classes),
        "batch_size": 1000,
      }
      for name, classes in (("digits", 10), ("emoji", 99))
    },
    shots=(1, 5, 10),
  )


def _data(name: str, split: str, classes: int):
  return {"name": name, "split": split, "ops": IMAGES, "num_classes": classes}
