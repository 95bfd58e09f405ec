"""The sections of a config on data sets. Imports no package that reads data."""

import dataclasses

from vmoe_study.data.ops import parse_ops
from vmoe_study.files.location import expand


@dataclasses.dataclass(frozen=True)
class DataSpec:
  """A data set, and how its examples become a batch.

  Attributes:
    name: a TFDS name ("name", "name/config"), "image_folder" or "image_csv".
    split: a TFDS split expression; the name of a sub-folder for image_folder,
      and of a file, without ".csv", for image_csv.
    ops: image operations (`ops.OPS`), "inception_crop(224)|flip_lr|...".
    num_classes: width of the label vectors.
    data_dir: the TFDS folder; None for TFDS's default.
    label_key: for TFDS, the feature that holds the label; by default that of
      `dataset_specs`, else "label". For image_csv, the column of the label; by
      default "label", or "labels" for several per image. For image_folder,
      "path" makes a class of every nested folder, named by its path.
    label_smoothing: fraction of the label mass spread over all classes.
    on_error: "raise" raises on a damaged example; with "skip", training takes
      the next example instead and evaluation masks it. Both count skipped
      examples.
    max_pixels: larger images are treated as damaged; 2**27, 134 million, by
      default.
  """

  name: str
  split: str
  ops: str
  num_classes: int
  data_dir: str | None = None
  label_key: str | None = None
  label_smoothing: float = 0.0
  on_error: str = "raise"
  max_pixels: int = 2**27

  def __post_init__(self) -> None:
    parse_ops(self.ops)
    if self.data_dir is not None:
      object.__setattr__(self, "data_dir", expand("data_dir", self.data_dir))
    if self.split.startswith("/") or ".." in self.split.split("/"):
      raise ValueError(
        f"split={self.split!r}: must stay within data_dir. Give the name of a "
        "split, or of a sub-folder of data_dir."
      )
    if self.num_classes < 1:
      raise ValueError(
        f"num_classes={self.num_classes}: must be at least 1. Give the number "
        "of classes of the data set."
      )
    if self.max_pixels < 1:
      raise ValueError(
        f"max_pixels={self.max_pixels}: must be at least 1. Leave it out for "
        "2**27."
      )
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(
        f"label_smoothing={self.label_smoothing}: must be in [0, 1). Set 0 to "
        "switch it off."
      )
    if self.on_error not in ("raise", "skip"):
      raise ValueError(
        f"on_error={self.on_error!r}: must be 'raise' or 'skip'."
      )


@dataclasses.dataclass(frozen=True)
class MixtureSpec:
  """A further training data set, mixed with the main one.

  Attributes:
    data: the data set and its preprocessing.
    weight: number of its examples per example of the main data set.
  """

  data: DataSpec
  weight: float
