"""The data sets of the recipes, for pretraining and for transfer.

"Public V-MoE configs" are the files in vmoe/configs/ of
github.com/google-research/vmoe.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vmoe_study.data.dataset_specs import DATASETS

RANGE = "value_range(-1, 1)"


@dataclasses.dataclass(frozen=True)
class Upstream:
  """A data set to train on from scratch.

  Attributes:
    train: TFDS name and split.
    evaluations: TFDS names and splits, by the name of the evaluation.
    num_classes: number of classes; an image may have several labels.
    image_size: side of the images in pixels, after the operations.
    train_ops: image operations of training, without the value range.
    test_ops: image operations of evaluation, without the value range.
    num_epochs: passes over the data; 0 where the recipe counts steps.
    mixup: see `TrainSpec`.
  """

  train: tuple[str, str]
  evaluations: Mapping[str, tuple[str, str]]
  num_classes: int
  image_size: int = 224
  train_ops: str = "inception_crop(224)|flip_lr"
  test_ops: str = "resize_small(256)|central_crop(224)"
  num_epochs: float = 0.0
  mixup: float = 0.0

  def training_data(self) -> dict[str, Any]:
    """The `DataSpec` of training, as a dict."""
    return self._data(*self.train, self.train_ops)

  def evaluation_data(self) -> dict[str, dict[str, Any]]:
    """The `DataSpec` of each evaluation, as a dict."""
    return {
      name: self._data(*source, self.test_ops)
      for name, source in self.evaluations.items()
    }

  def _data(self, name: str, split: str, ops: str) -> dict[str, Any]:
    ops = "|".join(filter(None, [ops, RANGE]))
    classes = self.num_classes
    return {"name": name, "split": split, "ops": ops, "num_classes": classes}


# JFT is not public: `jft_like`, noise with JFT-300M's number of classes, stands
# in for it. Splits, RandAugment, mixup and epochs of both ImageNets are those
# of the public V-MoE configs (for ImageNet-1k, of V-MoE-S/32); RandAugment is
# the variant "authors".
_JFT_LIKE = {
  "train": ("jft_like/5000", "train"),
  "evaluations": {"test": ("jft_like/5000", "test")},
}


def _randaug(magnitude: int) -> str:
  random = f"randaug(2, {magnitude}, variant='authors')"
  return f"inception_crop(224)|flip_lr|{random}"


UPSTREAM = {
  "jft": Upstream(**_JFT_LIKE, num_classes=18_291),
  "jft4b": Upstream(**_JFT_LIKE, num_classes=29_593),
  "imagenet21k": Upstream(
    train=("imagenet21k", "full[102400:]"),
    evaluations={"test": ("imagenet21k", "full[:102400]")},
    num_classes=21_843,
    train_ops=_randaug(20),
    num_epochs=300.0,
    mixup=0.5,
  ),
  "imagenet1k": Upstream(
    train=("imagenet2012", "train[:99%]"),
    evaluations={
      "val": ("imagenet2012", "train[99%:]"),
      "test": ("imagenet2012", "validation"),
      "real": ("imagenet2012_real", "validation"),
      "v2": ("imagenet_v2/matched-frequency", "test"),
    },
    num_classes=1_000,
    train_ops=_randaug(10),
    num_epochs=300.0,
    mixup=0.2,
  ),
}

SMOKE = Upstream(
  train=("digits", "train"),
  evaluations={"test": ("digits", "test")},
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


# Further test sets of the public V-MoE configs, by training data.
_MORE_TESTS = {
  "imagenet2012": {
    "real": "imagenet2012_real",
    "v2": "imagenet_v2/matched-frequency",
  }
}


def downstream(name: str, ops: str) -> dict[str, Any]:
  """The `DataSpec` of training on a data set of `DATASETS`."""
  return _spec(name, DATASETS[name].splits["train"], ops)


def downstream_evaluations(name: str, ops: str) -> dict[str, dict[str, Any]]:
  """The `DataSpec`s of "val" and "test", and of further test sets."""
  own = {split: (name, split) for split in ("val", "test")}
  more = {
    key: (other, "test") for key, other in _MORE_TESTS.get(name, {}).items()
  }
  return {
    key: _spec(data, DATASETS[data].splits[split], ops)
    for key, (data, split) in (own | more).items()
  }


def _spec(name: str, split: str, ops: str) -> dict[str, Any]:
  return {
    "name": name,
    "split": split,
    "ops": f"{ops}|{RANGE}",
    "num_classes": DATASETS[name].num_classes,
  }
