"""Training from scratch: any router, on any backbone, with either recipe.

Reproduces: the models of "Routers in Vision Mixture of Experts: An Empirical
Study" (2401.15969), and those of V-MoE (2106.05974) and Soft MoE (2308.00951)
that it compares. `configs/tables.py` lists them all.

  python -m vmoe_study train --workdir=DIR \\
    --config=configs/pretrain.py:data=imagenet1k --config.mesh.expert=8
  python -m vmoe_study train --workdir=DIR \\
    --config=configs/pretrain.py:router=softmax_expert_choice,backbone=B/16 \\
    --config.mesh.expert=32
  python -m vmoe_study train --workdir=DIR \\
    --config=configs/pretrain.py:smoke=true

Arguments, as NAME=VALUE with commas between. The defaults are those of the
public config of the recipe for these data:

  recipe   data         backbone  router                experts  blocks
  vmoe     jft          B/32      softmax_token_choice  32       every 2
           imagenet21k  B/16      softmax_token_choice  8        every 2
           imagenet1k   S8/32     softmax_token_choice  8        last 2 odd
  softmoe  jft4b        S/16      soft                  128 (*)  last half

(*) 256 for S/14 and H/14.

  recipe     vmoe: class token, sigmoid cross-entropy, linear decay; softmoe:
             mean over tokens, normalised queries and keys, reciprocal square
             root schedule. Both can be combined with any data
  data       jft, jft4b, imagenet21k or imagenet1k
  router     a key of `nn.zoo.ROUTERS`, or "dense" for a dense model
  backbone   S8/32, B/32, B/16, L/32, L/16, H/14 for V-MoE on JFT (S8 is its
             8-layer S); else any of Ti, S, S8, B, L, H and a patch size
  experts    E; 32 in the study
  mlp        hidden size of MLPs and experts, if not the backbone's; the table
             "dense_controls" has sizes at which a dense model costs as much as
             a routed one
  k          experts per token, for token choice: 2 in V-MoE, else 1
  group      images routed together: 8 for token choice in V-MoE, else 1
  capacity   the factor, 1 and 2 in the study; slots are rounded to the nearest
             number. By default: V-MoE's token choice 1.05, rounded up to a
             multiple of 4, and 4 in evaluations on imagenet1k; Soft MoE one
             slot per expert; else 1. Token choice in Soft MoE's recipe: our
             choice. `configs.tables` and the log print the actual capacity
  batch_priority  for token choice
  balance    weight of the importance and of the load loss, for token choice;
             0.005 for softmax, 0 for Sinkhorn token choice
  fewshot    imagenet (10-shot is the headline number), many (nine data sets)
             or none
  smoke      a tiny model of the same kind, trained and tested on digits
  seed       of the run

Data that you supply. ImageNet-21k is not in TFDS, and JFT is not public: noise
with its number of labels, `jft_like`, stands in for JFT. Your own data set must
be a TFDS data set, in the folder TFDS_DATA_DIR or DIR, with these features:

  image  Image of 3 channels: JPEG or PNG files of any size
  label  ClassLabel(num_classes=N), or Sequence(ClassLabel(num_classes=N)) for
         several labels per image, or none. `names=NAMES` in place of
         num_classes gives the classes names; data.label_key=NAME takes another
         feature

  data         name         splits                          N
  imagenet21k  imagenet21k  full; the first 102,400 images  21,843
                            are tested on
  jft, jft4b   any          train, test                     18,291; 29,593

To make one from a list `images` of paths and class numbers, with the extra
`tfds` of this package:

  import tensorflow_datasets as tfds

  F = tfds.features
  tfds.dataset_builders.store_as_tfds_dataset(
    "imagenet21k", "1.0.0", data_dir=DIR, file_format="array_record",
    features=F.FeaturesDict({
      "image": F.Image(shape=(None, None, 3)),
      "label": F.ClassLabel(num_classes=21_843),
    }),
    split_datasets={"full": (
      (path, {"image": path, "label": label}) for path, label in images
    )},
  )

and to try it with a dozen images, 4 of them for testing:

  python -m vmoe_study doctor \\
    --config=configs/pretrain.py:data=imagenet21k,fewshot=none \\
    --config.data.data_dir=DIR --config.evaluations.test.data.data_dir=DIR \\
    --config.data.split='full[4:]' \\
    --config.evaluations.test.data.split='full[:4]' \\
    --config.train.schedule.warmup_steps=0

For your own JFT, set `data.name` and `evaluations.test.data.name`; for another
N, set `num_classes` of both and of model.fields. `prepare NAME --to=URL` writes
a data set for object stores, and `doctor --num-examples` checks a config
without the data.

How the study grouped images, whether it used batch priority, which blocks were
MoE blocks and how long it trained are not known here. The tables therefore have
both group sizes, with and without priority, and use the recipes of the papers
on which the study builds.

Differences from the public configs: blocks compute in bfloat16 instead of
float32 (`notebooks/figures/README.md` has the effect on routing), and
evaluations take place every 10,000 steps instead of every 1,000. The public
configs do not state the training length and batch size of V-MoE on JFT, which
are our choice. `python -m configs.tables` names the public configs that have no
counterpart here.

Hardware: made for TPU pods, with at least one expert per chip. V-MoE-S/32 took
5 hours 50 minutes on a TPU v3-32 with imagenet1k, according to its public
config; smoke runs on one CPU core. Expected: the rows of `configs/tables.py`
have the published numbers with their sources; the study's own numbers are not
among them.
"""

import dataclasses

from configs import common, datasets, recipes


@dataclasses.dataclass(frozen=True)
class Arguments(recipes.Arguments):
  """Arguments of this file; see the module's docstring."""

  data: str = ""
  fewshot: str = "imagenet"

  def __post_init__(self):
    super().__post_init__()
    self._complete({"data": next(iter(recipes.RECIPES[self.recipe]))})
    common.check_choice("data", self.data, datasets.UPSTREAM)
    common.check_choice("fewshot", self.fewshot, datasets.FEWSHOT)

  @property
  def pretraining_data(self) -> str:
    return self.data


def get_config(arguments: str = ""):
  """Returns the config; the module's docstring documents the arguments."""
  args = common.parse_arguments(arguments, Arguments)
  smoke = args.smoke
  upstream = datasets.SMOKE if smoke else datasets.UPSTREAM[args.data]
  batch = recipes.SMOKE_BATCH if smoke else 1024
  train, evaluations = upstream.training_data(), upstream.evaluation_data()
  tasks = datasets.fewshot(args.fewshot)
  if smoke and tasks:
    tasks = {"digits": (train, evaluations["test"])}
  return common.config_dict(
    name=f"{args.backbone} {args.router}",
    seed=args.seed,
    model=recipes.pretraining_model(args, upstream),
    data=train,
    train=recipes.pretraining(args, upstream),
    evaluations={
      name: {"data": data, "batch_size": batch}
      for name, data in evaluations.items()
    },
    fewshot={
      name: {"train": train, "test": test, "batch_size": batch}
      for name, (train, test) in tasks.items()
    },
    draw_rule="vmoe",
    evaluation_capacity=recipes.evaluation_capacity(args),
  )
