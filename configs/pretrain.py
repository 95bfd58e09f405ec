"""Training from scratch: every router, on every backbone, by either recipe.

Reproduces: the models of "Routers in Vision Mixture of Experts: An Empirical
Study" (2401.15969), and those of V-MoE (2106.05974) and Soft MoE (2308.00951)
that it compares. `configs/tables.py` lists them all.

  python -m vmoe_study train --workdir=DIR \\
    --config=configs/pretrain.py:router=softmax_expert_choice,backbone=B/16 \\
    --config.mesh.expert=32
  python -m vmoe_study train --workdir=DIR \\
    --config=configs/pretrain.py:smoke=true

Arguments, as NAME=VALUE with commas between:
  router     a key of `nn.zoo.ROUTERS`, or "dense" for a dense model
  backbone   S8/32, B/32, B/16, L/32, L/16, H/14 for the V-MoE recipe (S8 is its
             8-layer S); any of Ti, S, B, L, H and a patch size for Soft MoE's
  recipe     vmoe: class token, sigmoid cross-entropy, linear decay, MoE in
             every second block; softmoe: mean over tokens, normalised queries
             and keys, reciprocal square root schedule, MoE in the last half
  capacity   the factor; 1 and 2 in the study. --config.evaluation_capacity=F
             evaluates at another one; V-MoE at 4, on imagenet1k
  k          experts per token, for token choice; 1 and 2 in the study
  group      images routed together; 1 or 8
  batch_priority  for token choice
  experts    32 in the study
  data       jft, imagenet21k or imagenet1k
  fewshot    imagenet (10-shot is the headline number), many (nine data sets)
             or none
  smoke      a tiny model of the same kind, trained and tested on digits
  seed       of the run

Data: JFT is not public. `data=jft` reads the synthetic `jft_like`, for its
shapes only; name your own data set with --config.data.name and
--config.evaluations.test.data.name. TFDS has no ImageNet-21k: prepare one of
that name. Fewshot needs imagenet2012_subset/10pct, or fewshot=none.

How the study grouped images, whether it used batch priority, which blocks were
MoE and how long it trained is not known here. The tables therefore have both
group sizes, with and without priority, and use the recipes of the papers that
it builds on.

Hardware: made for TPU pods, with one expert or more per chip; smoke runs on one
CPU core. Expected: the rows of `configs/tables.py` have the published numbers
with their sources; the study's own numbers are not among them.
"""

import dataclasses

from configs import common, datasets, recipes


@dataclasses.dataclass(frozen=True)
class Arguments(recipes.Arguments):
  """Arguments of this file; see the module's docstring."""

  data: str = "jft"
  fewshot: str = "imagenet"

  def __post_init__(self):
    super().__post_init__()
    common.check_choice("data", self.data, datasets.UPSTREAM)
    common.check_choice("fewshot", self.fewshot, datasets.FEWSHOT)


def get_config(arguments: str = ""):
  """The config; the module's docstring documents its arguments."""
  args = common.parse_arguments(arguments, Arguments)
  smoke = args.smoke
  upstream = datasets.SMOKE if smoke else datasets.UPSTREAM[args.data]
  batch = recipes.SMOKE_BATCH if smoke else 1024
  train, test = upstream.data("train"), upstream.data("test")
  tasks = datasets.fewshot(args.fewshot)
  if smoke and tasks:
    tasks = {"digits": (train, test)}
  return common.config_dict(
    name=f"{args.backbone} {args.router}",
    seed=args.seed,
    model=recipes.pretraining_model(args, upstream),
    data=train,
    train=recipes.pretraining(args, upstream),
    evaluations={"test": {"data": test, "batch_size": batch}},
    fewshot={
      name: {"train": train, "test": test, "batch_size": batch}
      for name, (train, test) in tasks.items()
    },
    evaluation_capacity=recipes.evaluation_capacity(args, args.data),
  )
