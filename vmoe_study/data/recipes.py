"""Ready recipes: the field's data sets under the names that TFDS gives them.

A recipe says which splits train, select and test, how many classes there are,
and under which key the labels stand. Where a set has no validation split, the
last part of its training split serves as one.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How one TFDS data set is used.

  Attributes:
    splits: TFDS split expressions for "train", "val" and "test".
    num_classes: the number of classes.
    label_key: the feature that holds the label or labels.
    manual: files the data set cannot be built without, to be put in the
      manual folder; empty where TFDS can download everything.
  """

  splits: dict[str, str]
  num_classes: int
  label_key: str = "label"
  manual: tuple[str, ...] = ()


def _splits(train: str, val: str, test: str) -> dict[str, str]:
  return {"train": train, "val": val, "test": test}


def _held_out(percent: int, test: str = "test") -> dict[str, str]:
  """The last `percent` of train is the validation split."""
  keep = 100 - percent
  return _splits(f"train[:{keep}%]", f"train[{keep}%:]", test)


RECIPES: dict[str, Recipe] = {
  "digits": Recipe(_held_out(10), 10),
  "fashion_mnist": Recipe(_held_out(10), 10),
}
