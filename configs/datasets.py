"""The data sets of the recipes, for pretraining and for transfer.

"Public V-MoE configs" are the files in vmoe/configs/ of
github.com/google-research/vmoe.
"""

import dataclasses
from typing import Any

from vmoe_study.data.dataset_specs import DATASETS

RANGE = "value_range(-1, 1)"


@dataclasses.dataclass(frozen=True)
class Upstream:
  """A data set to train on from scratch.

  Attributes:
    train: TFDS name and split.
    test: TFDS name and split.
    num_classes: of the labels, which may be many per image.
    image_size: pixels, after the operations.
    train_ops: image operations of training, without the value range.
    test_ops: image operations of evaluation, without the value range.
    num_epochs: passes over the data; 0 where the recipe counts steps.
    mixup: see `TrainSpec`.
    representation: whether the V-MoE recipe has a representation layer.
  """

  train: tuple[str, str]
  test: tuple[str, str]
  num_classes: int
  image_size: int = 224
  train_ops: str = "inception_crop(224)|flip_lr"
  test_ops: str = "resize_small(256)|central_crop(224)"
  num_epochs: float = 0.0
  mixup: float = 0.0
  representation: bool = True

  def data(self, split: str) -> dict[str, Any]:
    """The `DataSpec` of the split "train" or "test", as a dict."""
    name, part = getattr(self, split)
    ops = "|".join(filter(None, [getattr(self, f"{split}_ops"), RANGE]))
    classes = self.num_classes
    return {"name": name, "split": part, "ops": ops, "num_classes": classes}


# JFT is not public: `jft_like`, noise with JFT's number of classes, stands in
# for it. Splits, RandAugment, mixup and epochs of the ImageNets are those of
# the public V-MoE configs (ImageNet-1k: of its V-MoE-S/32).
UPSTREAM = {
  "jft": Upstream(
    train=("jft_like/5000", "train"),
    test=("jft_like/5000", "test"),
    num_classes=18_291,
  ),
  "imagenet21k": Upstream(
    train=("imagenet21k", "full[102400:]"),
    test=("imagenet21k", "full[:102400]"),
    num_classes=21_843,
    train_ops="inception_crop(224)|flip_lr|randaug(2, 20)",
    num_epochs=300.0,
    mixup=0.5,
    representation=False,
  ),
  "imagenet1k": Upstream(
    train=("imagenet2012", "train[:99%]"),
    test=("imagenet2012", "validation"),
    num_classes=1_000,
    train_ops="inception_crop(224)|flip_lr|randaug(2, 10)",
    num_epochs=300.0,
    mixup=0.2,
  ),
}

SMOKE = Upstream(
  train=("digits", "train"),
  test=("digits", "test"),
  num_classes=10,
  image_size=8,
  train_ops="",
  test_ops="",
)

# Data sets and splits of the public V-MoE configs.
_IMAGENET = {"imagenet": ("imagenet2012_subset/10pct", "train", "validation")}
FEWSHOT: dict[str, dict[str, tuple[str, str, str]]] = {
  "none": {},
  "imagenet": _IMAGENET,
  "many": {
    "birds": ("caltech_birds2011", "train", "test"),
    "caltech": ("caltech101", "train", "test"),
    "cars": ("cars196", "train", "test"),
    "cifar100": ("cifar100", "train", "test"),
    "col_hist": ("colorectal_histology", "train[:2000]", "train[2000:]"),
    "dtd": ("dtd", "train", "test"),
    "pets": ("oxford_iiit_pet", "train", "test"),
    "uc_merced": ("uc_merced", "train[:1000]", "train[1000:]"),
    **_IMAGENET,
  },
}


def fewshot(suite: str) -> dict[str, tuple[dict, dict]]:
  """The `DataSpec`s of shots and test images by task, at 224 pixels."""
  ops = "resize(256)|central_crop(224)"
  return {
    task: (_spec(name, train, ops), _spec(name, test, ops))
    for task, (name, train, test) in FEWSHOT[suite].items()
  }


def downstream(name: str, split: str, ops: str) -> dict[str, Any]:
  """The `DataSpec` of the split "train", "val" or "test" in `DATASETS`."""
  return _spec(name, DATASETS[name].splits[split], ops)


def _spec(name: str, split: str, ops: str) -> dict[str, Any]:
  return {
    "name": name,
    "split": split,
    "ops": f"{ops}|{RANGE}",
    "num_classes": DATASETS[name].num_classes,
  }
