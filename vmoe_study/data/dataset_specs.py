"""Splits, classes and labels of common vision data sets, by TFDS name.

For a data set without a validation split, the last part of its training split
is held out.
"""

import dataclasses
import re

# As in TFDS: "1.0.0", "1.*.*".
_VERSION = re.compile(r":((?:\d+|\*)(?:\.(?:\d+|\*)){2}|experimental_latest)$")


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
  """How a TFDS data set is used.

  Attributes:
    splits: TFDS split expressions for "train", "val" and "test".
    num_classes: number of classes.
    label_key: feature that holds the label or labels.
    manual: files that the user must put into the manual folder before the data
      set is built; empty if TFDS can download everything.
  """

  splits: dict[str, str]
  num_classes: int
  label_key: str = "label"
  manual: tuple[str, ...] = ()


def _held_out(percent: int, test: str = "test") -> dict[str, str]:
  """Splits that hold out the last `percent` of training for validation."""
  keep = 100 - percent
  return {"train": f"train[:{keep}%]", "val": f"train[{keep}%:]", "test": test}


def _own_splits(val: str = "validation", test: str = "test") -> dict[str, str]:
  """The data set's own splits."""
  return {"train": "train", "val": val, "test": test}


# For data sets with a single split: 60% train, 20% validate, 20% test.
_SINGLE_SPLIT = {
  "train": "train[:60%]",
  "val": "train[60%:80%]",
  "test": "train[80%:]",
}

_IMAGENET_TRAIN = "ILSVRC2012_img_train.tar"
_IMAGENET_VAL = "ILSVRC2012_img_val.tar"

_FASHION = tuple(
  f"{split}-{kind}-ubyte.gz"
  for split in ("train", "t10k")
  for kind in ("images-idx3", "labels-idx1")
)
_EMOJI = (
  "fonts/truetype/noto/NotoColorEmoji.ttf",
  "unicode/emoji/emoji-test.txt",
)

DATASETS: dict[str, DatasetSpec] = {
  # Built from local files.
  "digits": DatasetSpec(_held_out(10), 10),
  "fashion_mnist": DatasetSpec(_held_out(10), 10, manual=_FASHION),
  "emoji": DatasetSpec(_held_out(10), 99, manual=_EMOJI),
  "glyphs/1000": DatasetSpec(_own_splits("val"), 1000),
  "glyphs/2000": DatasetSpec(_own_splits("val"), 2000),
  "glyphs/kana": DatasetSpec(_held_out(10), 91),
  "glyphs/hangul": DatasetSpec(_held_out(10), 200),
  "glyph_scenes/500": DatasetSpec(_own_splits("val"), 500),
  # ImageNet and its other test sets.
  "imagenet2012": DatasetSpec(
    _held_out(1, "validation"), 1000, manual=(_IMAGENET_TRAIN, _IMAGENET_VAL)
  ),
  "imagenet2012_subset/1pct": DatasetSpec(
    _held_out(10, "validation"), 1000, manual=(_IMAGENET_TRAIN, _IMAGENET_VAL)
  ),
  "imagenet2012_subset/10pct": DatasetSpec(
    _held_out(10, "validation"), 1000, manual=(_IMAGENET_TRAIN, _IMAGENET_VAL)
  ),
  "imagenet2012_real": DatasetSpec(
    {"test": "validation"}, 1000, "real_label", manual=(_IMAGENET_VAL,)
  ),
  "imagenet_v2/matched-frequency": DatasetSpec({"test": "test"}, 1000),
  "imagenet_a": DatasetSpec({"test": "test"}, 1000),
  "imagenet_r": DatasetSpec({"test": "test"}, 1000),
  "imagenet_sketch": DatasetSpec({"test": "test"}, 1000),
  # Transfer and few-shot sets.
  "caltech101": DatasetSpec(_held_out(10), 102),
  "caltech_birds2011": DatasetSpec(_held_out(10), 200),
  "cars196": DatasetSpec(_held_out(10), 196),
  "cifar10": DatasetSpec(_held_out(10), 10),
  "cifar100": DatasetSpec(_held_out(10), 100),
  "colorectal_histology": DatasetSpec(_SINGLE_SPLIT, 8),
  "dtd": DatasetSpec(_own_splits(), 47),
  "eurosat/rgb": DatasetSpec(_SINGLE_SPLIT, 10),
  "food101": DatasetSpec(_held_out(10, "validation"), 101),
  "oxford_flowers102": DatasetSpec(_own_splits(), 102),
  "oxford_iiit_pet": DatasetSpec(_held_out(10), 37),
  "patch_camelyon": DatasetSpec(_own_splits(), 2),
  "places365_small": DatasetSpec(_held_out(1, "validation"), 365),
  "resisc45": DatasetSpec(_SINGLE_SPLIT, 45, manual=("NWPU-RESISC45.rar",)),
  "stanford_dogs": DatasetSpec(_held_out(10), 120),
  "stl10": DatasetSpec(_held_out(10), 10),
  "sun397/tfds": DatasetSpec(_own_splits(), 397),
  "svhn_cropped": DatasetSpec(_held_out(10), 10),
  "uc_merced": DatasetSpec(_SINGLE_SPLIT, 21),
}


def split_version(name: str) -> tuple[str, str]:
  """Splits "name/config:1.0.0" into "name/config" and "1.0.0".

  The version is empty if the name has none. Namespaces are part of the name.
  """
  match = _VERSION.search(name)
  return (name[: match.start()], match[1]) if match else (name, "")


def find_spec(name: str) -> DatasetSpec | None:
  """The spec of a data set, in any version; None if it is not listed here."""
  return DATASETS.get(split_version(name)[0])
