"""Training and fine-tuning on your own images, in class folders or a CSV file.

This is not an experiment of the study. The images are FOLDER/train/CLASS/* and
FOLDER/test/CLASS/*, of any size: .jpg, .jpeg, .png, .webp, .gif (first frame),
.bmp, .tif and .tiff files. The config counts classes and images. Names that
begin with a dot are ignored; other files are skipped and reported. So are
folders inside class folders, which may be classes (animals/cat) or parts of a
class (cat/2024): `nested=true` makes a class of every folder with images, named
by its path. Classes are compared by name: the test images may lack some, but
must not have additional ones. To hold out every fifth image of a class, in a
shell:

  (cd photos/train && for class in */; do
    mkdir -p "../test/$class"
    ls "$class" | awk 'NR % 5 == 0' | while read -r image; do
      mv "$class$image" "../test/$class"
    done
  done)

With `csv=true`, FOLDER/train.csv and FOLDER/test.csv list the images instead,
in UTF-8 with commas between columns, relative to FOLDER, with absolute paths or
as gs://, s3:// or az:// URLs. Images with one class have a column `label`:

  image,label
  cats/1.jpg,cat
  gs://bucket/dogs/7.png,dog

and images with any number of classes, or none, `labels` with "|" between them:

  image,labels
  cats/1.jpg,cat|indoors

In this case the loss is sigmoid cross-entropy, and there are no few-shot
evaluations.

Train from scratch or, with few images, fine-tune a trained model: the workdir
of a run, a public V-MoE checkpoint (kind=vmoe) or a dense ViT (kind=npz).
Resolution and classes may differ from those of the trained model.

  python -m vmoe_study train --workdir=workdir/scratch \\
    --config=configs/image_folder.py:folder=photos,size=64,backbone=Ti/8,\\
experts=8,batch=32,epochs=20
  python -m vmoe_study train --workdir=workdir/listed \\
    --config=configs/image_folder.py:folder=photos,csv=true,size=64,\\
backbone=Ti/8,experts=8,batch=32,epochs=20
  python -m vmoe_study train --workdir=workdir/finetuned \\
    --config=configs/image_folder.py:folder=photos,start=workdir/scratch,\\
size=96,backbone=Ti/8,experts=8,batch=32,epochs=5
  python -m vmoe_study report workdir/*
  python -m vmoe_study evaluate --workdir=workdir/finetuned --trust-data-dirs

The last command reads a folder that only the checkpoint's own config names, so
this has to be confirmed.

Without `start`, the model is trained from scratch with Adam; hyper-parameters
are our choice. With `start`, it is fine-tuned as in configs/finetune.py, for
fewer steps. Arguments:
  folder     of the images or CSV files; needed
  csv        whether CSV files list the images; false
  nested     whether folders inside class folders are classes; false
  start      workdir, V-MoE prefix or .npz file to start from; the arguments
             must describe its model, except for classes and capacity
  kind       checkpoint, vmoe or npz: what `start` is
  size       pixels; 224
  epochs     passes over the images; 30
  batch      images per step; 64
  rate       peak learning rate; 0.001, or 0.003 with `start`
and those of configs/pretrain.py that describe the model: router, backbone,
recipe, capacity, k, group, batch_priority, experts, seed.

Hardware: any. Expected: depends on the images. With 150 drawings of circles,
squares and stripes, the commands above took 122 and 72 seconds on two busy CPU
cores and reached 90.0% (75 steps) and 83.3% (19 steps) on 30 test images.
"""

import dataclasses
import math
import os
from typing import Any

from configs import common, datasets, recipes
from vmoe_study.data.image_folder import BY_PATH
from vmoe_study.data.sources import Source, open_split
from vmoe_study.files.location import expand


@dataclasses.dataclass(frozen=True)
class Arguments(recipes.Arguments):
  """Arguments of this file; see the module's docstring."""

  router: str = "softmax_expert_choice"
  capacity: float = 1.0
  group: int = 1
  folder: str = ""
  csv: bool = False
  nested: bool = False
  start: str = ""
  kind: str = "checkpoint"
  size: int = 224
  epochs: float = 30.0
  batch: int = 64
  rate: float = 0.0

  @property
  def source(self) -> dict[str, Any]:
    """The fields of a `DataSpec` that name the images, without the split."""
    folder = expand("config argument folder", self.folder)
    folder = folder if "://" in folder else os.path.realpath(folder)
    source = {"name": "image_csv" if self.csv else "image_folder"}
    source["data_dir"] = folder
    return source | ({"label_key": BY_PATH} if self.nested else {})


def get_config(arguments: str = ""):
  """Returns the config; the module's docstring documents the arguments."""
  args = common.parse_arguments(arguments, Arguments)
  if not args.folder:
    raise ValueError(
      "config argument folder='': must be given. Name the folder that holds "
      "train/CLASS/*.jpg and test/CLASS/*.jpg, or train.csv and test.csv."
    )
  if args.csv and args.nested:
    raise ValueError(
      "config arguments csv=true, nested=true: a CSV file has no class "
      "folders. Leave out one."
    )
  source = open_split(split="train", **args.source)
  classes, size = source.num_classes, args.size
  test_ops = f"resize_small({size * 8 // 7})|central_crop({size})"
  train = _data(args, "train", f"inception_crop({size})|flip_lr", classes)
  shots, test = (_data(args, s, test_ops, classes) for s in ("train", "test"))
  sections: dict[str, Any] = {}
  if not source.many_labels:
    task = {"train": shots, "test": test, "batch_size": args.batch}
    sections["fewshot"] = {"own": task}
  if args.start:
    sections["initialize"] = {"kind": args.kind, "path": args.start}
  return common.config_dict(
    name=f"{args.backbone} {args.router} on images",
    seed=args.seed,
    model=recipes.model(args, classes),
    data=train,
    train=_training(args, source),
    evaluations={"test": {"data": test, "batch_size": args.batch}},
    **sections,
  )


def _data(
  args: Arguments, split: str, ops: str, num_classes: int
) -> dict[str, Any]:
  return {
    **args.source,
    "split": split,
    "ops": f"{ops}|{datasets.RANGE}",
    "num_classes": num_classes,
  }


def _training(args: Arguments, source: Source) -> dict[str, Any]:
  steps = math.ceil(args.epochs * len(source) / args.batch)
  every = max(1, steps // 10)
  if args.start:
    optimizer = {"name": "sgd", "momentum": 0.9, "clip_norm": 10.0}
  else:
    decay = (("kernel$", 0.1),)
    optimizer = {"name": "adam", "weight_decay": decay, "clip_norm": 1.0}
  return {
    "batch_size": args.batch,
    "num_steps": steps,
    "loss": "sigmoid_xent" if source.many_labels else "softmax_xent",
    "optimizer": optimizer,
    "schedule": {
      "name": "cosine",
      "peak": args.rate or (3e-3 if args.start else 1e-3),
      "warmup_steps": steps // 10,
    },
    "report_every": every,
    "save_every": every,
  }
