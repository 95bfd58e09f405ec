"""`image_folder`: image files in one folder per class, read in place.

The layout is DATA_DIR/SPLIT/CLASS/*.jpg. Folders inside class folders are
skipped and reported: they may be classes (animals/cat) or parts of a class
(cat/2024), which cannot be told apart. With label_key="path" they are classes:
every folder with images is a class, named by its path below SPLIT.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vmoe_study.data.classes import ClassNames
from vmoe_study.data.records import RecordError, intact

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_SHOWN = 3
BY_PATH = "path"  # As `label_key`.


class ImageFolderSource:
  """The images DATA_DIR/SPLIT/CLASS/*.jpg (see `SUFFIXES`), in sorted order.

  Names that begin with a dot are ignored. Implements `sources.Source`.

  Attributes:
    num_classes: number of class folders with images.
    class_names: names of these folders, sorted.
    empty_folders: paths of the class folders without images.
    notes: messages about skipped files and folders.
    many_labels: False.
    is_remote: False, as it reads local folders only.
    channels: 3, as grey images are converted to RGB.
  """

  many_labels = False
  is_remote = False
  channels = 3

  def __init__(self, data_dir: str, split: str, label_key: str | None = None):
    """Lists the files.

    Args:
      data_dir: local folder.
      split: name of a folder in it.
      label_key: `BY_PATH` if folders inside class folders are classes, too.

    Raises:
      ValueError: the folder does not exist, cannot be listed, or has no class
        folder with images; or `label_key` is invalid.
    """
    if label_key not in (None, BY_PATH):
      raise ValueError(
        f"label_key={label_key!r}: must be {BY_PATH!r} for an image_folder, or "
        "left out."
      )
    self._root = Path(data_dir).expanduser() / split
    _, other_files = _list(self._root)
    folders = list(_class_folders(self._root, "", label_key == BY_PATH))
    classes = [folder for folder in folders if folder.images]
    classes.sort(key=lambda folder: folder.name)
    empty = [folder for folder in folders if folder.is_empty]
    self.empty_folders = [str(self._root / folder.name) for folder in empty]
    self.notes = list(_notes(self._root, folders, other_files))
    if not classes:
      raise ValueError(
        f"{self._root}: has no class folder with images. image_folder reads "
        f"DATA_DIR/SPLIT/CLASS/*, files of {', '.join(SUFFIXES)}. "
        + "; ".join(self.notes)
      )
    self.num_classes = len(classes)
    self.class_names: ClassNames = tuple(folder.name for folder in classes)
    self._files = [file for folder in classes for file in folder.images]
    counts = [len(folder.images) for folder in classes]
    self._labels = np.repeat(np.arange(len(classes)), counts)

  def __len__(self) -> int:
    return len(self._files)

  def where(self, index: int) -> str:
    name = self.class_names[self._labels[index]]
    return str(self._root / name / self._files[index])

  def read(self, indices: Sequence[int]) -> list[dict[str, Any] | RecordError]:
    return [self._read(int(index)) for index in indices]

  def __getitem__(self, index: int) -> dict[str, Any]:
    return intact(self.read([index])[0])

  def _read(self, index: int) -> dict[str, Any] | RecordError:
    path = self.where(index)
    try:
      image = Path(path).read_bytes()
    except OSError as error:
      return RecordError(
        f"{path}: cannot be read: {error.strerror}. Repair or remove the file."
      )
    return {"image": image, "label": int(self._labels[index])}

  def blocks(self) -> np.ndarray:
    return np.arange(len(self) + 1)  # Every file is one example.

  def file_ends(self) -> np.ndarray:
    return np.zeros(0, np.int64)  # Every file is one example.

  def labels(self) -> np.ndarray:
    return self._labels.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class _ClassFolder:
  """Names of the images, the other files and the folders in a class folder.

  Attributes:
    name: path of the folder below the split.
    images: names of the images in it.
    others: names of the other files.
    folders: names of the folders in it that are skipped.
    is_empty: whether it contains neither images nor class folders.
  """

  name: str
  images: Sequence[str]
  others: Sequence[str]
  folders: Sequence[str]
  is_empty: bool


def _class_folders(
  root: Path, parent: str, nested: bool
) -> Iterator[_ClassFolder]:
  """The folders in a folder; if nested, also those inside them.

  Links are not followed, because they may form cycles.
  """
  for name in _list(root / parent)[0]:
    name = f"{parent}/{name}" if parent else name
    folders, files = _list(root / name)
    images = [file for file in files if file.lower().endswith(SUFFIXES)]
    others = sorted({*files} - {*images})
    enters = nested and not (root / name).is_symlink()
    is_empty = not images and not (enters and folders)
    passed_over = [] if enters else folders
    yield _ClassFolder(name, images, others, passed_over, is_empty)
    if enters:
      yield from _class_folders(root, name, nested)


def _list(folder: Path) -> tuple[list[str], list[str]]:
  """Sorted names of the folders and the files in a folder, without hidden ones.

  Raises:
    ValueError: it cannot be listed.
  """
  folders, files = [], []
  try:
    with os.scandir(folder) as entries:
      for entry in entries:
        if not entry.name.startswith("."):
          (folders if entry.is_dir() else files).append(entry.name)
  except FileNotFoundError as error:
    raise ValueError(
      f"{folder}: there is no such folder. image_folder reads "
      "DATA_DIR/SPLIT/CLASS/*.jpg."
    ) from error
  except OSError as error:
    raise ValueError(
      f"{folder}: cannot be listed: {error.strerror}. Change its permissions, "
      "or remove it."
    ) from error
  return sorted(folders), sorted(files)


def _notes(
  root: Path, folders: Sequence[_ClassFolder], other_files: Sequence[str]
) -> Iterator[str]:
  """Describes the files and folders that are skipped."""
  others = [f"{f.name}/{file}" for f in folders for file in f.others]
  if others := [*other_files, *others]:
    yield f"files skipped, no images in class folders: {_shorten(others)}"
  if empty := [folder.name for folder in folders if folder.is_empty]:
    yield f"folders skipped, without images: {_shorten(empty)}"
  nested = [f"{f.name}/{name}" for f in folders for name in f.folders]
  if nested:
    count = sum(_count_files(root / path) for path in nested)
    yield (
      f"folders skipped, inside class folders: {_shorten(nested)}, with "
      f"{count:,} files. To read them, set label_key={BY_PATH!r} if they are "
      "classes, and move the files up if they are not"
    )


def _count_files(folder: Path) -> int:
  return sum(len(files) for _, _, files in os.walk(folder))


def _shorten(names: Sequence[str]) -> str:
  more = ", ..." if len(names) > MAX_SHOWN else ""
  return f"{len(names):,} ({', '.join(names[:MAX_SHOWN])}{more})"
