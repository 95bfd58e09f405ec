"""Prepared data sets with random access to undecoded examples."""

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from vmoe_study.data.classes import ClassNames
from vmoe_study.data.image_csv import ImageCsvSource
from vmoe_study.data.image_folder import ImageFolderSource
from vmoe_study.data.records import RecordError
from vmoe_study.data.spec import DataSpec
from vmoe_study.files.ranges import is_remote

# Data sets of image files, read in place; all other names are TFDS names.
IMAGE_FILES = {"image_folder": ImageFolderSource, "image_csv": ImageCsvSource}


class Source(Protocol):
  """Random access to N examples; picklable for worker processes."""

  @property
  def num_classes(self) -> int:
    """Number of classes."""

  @property
  def class_names(self) -> ClassNames:
    """Names of the classes by number; empty if they have only numbers."""

  @property
  def empty_folders(self) -> Sequence[str]:
    """Paths of class folders without images; their names are not classes."""

  @property
  def notes(self) -> Sequence[str]:
    """Messages for the user about skipped files and folders."""

  @property
  def many_labels(self) -> bool:
    """Whether an image may have several labels, or none."""

  @property
  def channels(self) -> int:
    """Number of image channels: 1 (grey) or 3 (RGB)."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads one example.

    Raises:
      RecordError: it is damaged.
    """

  def read(self, indices: Sequence[int]) -> list[dict[str, Any] | RecordError]:
    """Reads examples; neighbouring ones with one request.

    Returns:
      For each example {"image": bytes or uint8 (H, W, C), "label": int or
      ints}, or an error if it is damaged.
    """

  @property
  def is_remote(self) -> bool:
    """Whether every read takes a request to a store."""

  def blocks(self) -> np.ndarray:
    """Returns int64 (M + 1,): the starts of blocks for large reads, and N."""

  def labels(self) -> np.ndarray:
    """Returns int64 (N,): every label; decodes no image."""

  def where(self, index: int) -> str:
    """The file and record of example `index`, for error messages."""

  def file_ends(self) -> np.ndarray:
    """Indices of the last example of each file, which truncation would lose."""


def make_indices(
  spec: DataSpec, process_index: int, process_count: int, fallback_folder: str
) -> None:
  """Makes the indices of one host's share of the files of a data set.

  Otherwise every host would make the missing ones when it opens the data set.
  Does nothing for local data sets. Arguments are those of
  `tfds_source.make_indices`.
  """
  data_dir = spec.data_dir or os.environ.get("TFDS_DATA_DIR", "")
  if spec.name not in IMAGE_FILES and is_remote(data_dir):
    from vmoe_study.data import tfds_source  # Imports TFDS.

    tfds_source.make_indices(
      spec, process_index, process_count, fallback_folder
    )


def open_source(spec: DataSpec) -> Source:
  """Opens the data set of a spec, without its image operations.

  Raises:
    MissingDataError: the data set is not prepared; names the command.
    ValueError: there is no such split or label feature, or the files have an
      unknown format.
  """
  return open_split(
    spec.name, spec.split, spec.data_dir, spec.label_key, spec.num_classes
  )


def open_split(
  name: str,
  split: str,
  data_dir: str | None = None,
  label_key: str | None = None,
  num_classes: int | None = None,
) -> Source:
  """Like `open_source`, for callers without a complete spec.

  Args:
    name: a TFDS name ("name", "name/config", "name:version"), or a key of
      `IMAGE_FILES`.
    split: a TFDS split expression, "train" or "train[:99%]"; for image_folder,
      the sub-folder of this name; for image_csv, the file of this name.
    data_dir: the TFDS folder (a path or URL); TFDS's default when None.
    label_key: the feature or column of the label, see `DataSpec`.
    num_classes: number of classes, if the labels are integers without one.

  Raises:
    MissingDataError: the data set is not prepared; names the command.
    ValueError: see `open_source`; or image files without `data_dir`.
  """
  if name in IMAGE_FILES:
    if data_dir is None:
      raise ValueError(
        f"data_dir=None: {name} needs the folder that holds SPLIT/CLASS/*.jpg "
        "or SPLIT.csv. Set data_dir."
      )
    return IMAGE_FILES[name](data_dir, split, label_key)
  from vmoe_study.data.tfds_source import open_tfds  # Imports TFDS.

  return open_tfds(name, split, data_dir, label_key, num_classes)
