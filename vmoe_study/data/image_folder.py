"""`image_folder`: image files in one folder per class, read in place."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png")


class ImageFolderSource:
  """The images DATA_DIR/SPLIT/CLASS/*.jpg (.jpeg, .png), in sorted order.

  Implements `sources.Source`.

  Attributes:
    num_classes: number of class folders.
    label_names: names of the class folders, sorted.
    many_labels: False.
    channels: 3, as grey images are converted to RGB.
  """

  many_labels = False
  channels = 3

  def __init__(self, data_dir: str, split: str):
    """Lists the files.

    Raises:
      ValueError: the folder does not exist, or has no class folders, or one of
        them has no images.
    """
    self._root = Path(data_dir).expanduser() / split
    self.label_names: Sequence[str] = _class_names(self._root)
    self.num_classes = len(self.label_names)
    files = [_image_files(self._root / name) for name in self.label_names]
    _check_none_empty(self._root, self.label_names, files)
    self._files = [file for group in files for file in group]
    self._labels = np.repeat(np.arange(len(files)), [len(g) for g in files])

  def __len__(self) -> int:
    return len(self._files)

  def where(self, index: int) -> str:
    name = self.label_names[self._labels[index]]
    return str(self._root / name / self._files[index])

  def __getitem__(self, index: int) -> dict[str, Any]:
    image = Path(self.where(index)).read_bytes()
    return {"image": image, "label": int(self._labels[index])}

  def file_ends(self) -> np.ndarray:
    return np.zeros(0, np.int64)  # Every file is one example.

  def labels(self) -> np.ndarray:
    return self._labels.astype(np.int64)


def _class_names(root: Path) -> list[str]:
  if not root.is_dir():
    raise ValueError(
      f"{root}: there is no such folder. image_folder reads "
      "DATA_DIR/SPLIT/CLASS/*.jpg."
    )
  names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
  if not names:
    raise ValueError(
      f"{root}: has no sub-folders. image_folder needs one folder per class."
    )
  return names


def _image_files(folder: Path) -> list[str]:
  names = [entry.name for entry in os.scandir(folder)]
  return sorted(n for n in names if n.lower().endswith(SUFFIXES))


def _check_none_empty(
  root: Path, names: Sequence[str], files: Sequence[list[str]]
) -> None:
  pairs = zip(names, files, strict=True)
  empty = [str(root / name) for name, images in pairs if not images]
  if empty:
    raise ValueError(
      f"{', '.join(empty)}: no {', '.join(SUFFIXES)} file in this class "
      "folder. Add images, or remove the folder."
    )
