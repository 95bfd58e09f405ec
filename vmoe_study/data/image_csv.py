"""`image_csv`: image files listed, with their labels, in a CSV file.

DATA_DIR/SPLIT.csv, in UTF-8, with commas between its columns and a header:

  image,label             image,labels
  cats/1.jpg,cat          cats/1.jpg,cat|indoors
  /photos/7.png,dog       gs://bucket/7.png,

`image` is a path relative to the CSV file, an absolute path, or a URL. `label`
is one class; `labels` are any number of classes with "|" between them. If
`label_key` names another column, that column holds one class. Other columns are
ignored. The classes are the sorted labels of the file.
"""

import csv
import io
import os
import posixpath
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vmoe_study.data.classes import ClassNames
from vmoe_study.data.records import RecordError, intact
from vmoe_study.files.location import check_reachable, expand, locate
from vmoe_study.files.ranges import FINAL, is_remote, read_file

PATH, LABEL, LABELS = "image", "label", "labels"
BETWEEN = "|"  # Between the labels of an image.
MAX_SHOWN = 3


class _Row(NamedTuple):
  line: int
  path: str
  labels: Sequence[str]


class ImageCsvSource:
  """The images of DATA_DIR/SPLIT.csv, in the order of its lines.

  Implements `sources.Source`.

  Attributes:
    num_classes: number of classes in the file.
    class_names: names of the classes, sorted.
    many_labels: whether an image may have several labels, or none.
    is_remote: whether the file or an image is behind a URL.
    channels: 3, as grey images are converted to RGB.
    empty_folders: none.
    notes: none.
  """

  channels = 3
  empty_folders: Sequence[str] = ()
  notes: Sequence[str] = ()

  def __init__(self, data_dir: str, split: str, label_key: str | None = None):
    """Reads the file, and checks that local images exist.

    Raises:
      ValueError: there is no such file, a line of it is wrong, or an image is
        missing; the message names the line.
      OSError: the file cannot be read.
    """
    folder = os.path.expanduser(data_dir).rstrip("/")
    self._file = f"{folder}/{split}.csv"
    rows, column = _read_rows(self._file, label_key)
    _check_files(self._file, rows)
    self.many_labels = column == LABELS
    names = {name for row in rows for name in row.labels}
    self.class_names: ClassNames = tuple(sorted(names))
    self.num_classes = len(self.class_names)
    numbers = {name: i for i, name in enumerate(self.class_names)}
    self._labels = [[numbers[name] for name in row.labels] for row in rows]
    self._paths = [row.path for row in rows]
    self._lines = np.asarray([row.line for row in rows])
    self.is_remote = any(map(is_remote, (self._file, *self._paths)))

  def __len__(self) -> int:
    return len(self._paths)

  def where(self, index: int) -> str:
    return f"{self._paths[index]} ({self._file}, line {self._lines[index]})"

  def read(self, indices: Sequence[int]) -> list[dict[str, Any] | RecordError]:
    return [self._read(int(index)) for index in indices]

  def __getitem__(self, index: int) -> dict[str, Any]:
    return intact(self.read([index])[0])

  def _read(self, index: int) -> dict[str, Any] | RecordError:
    try:
      image = read_file(self._paths[index])
    except FINAL as error:
      return RecordError(
        f"{self.where(index)}: cannot be read: {error.strerror or error}. "
        "Repair the file, or remove its line."
      )
    labels = self._labels[index]
    return {"image": image, "label": labels if self.many_labels else labels[0]}

  def blocks(self) -> np.ndarray:
    return np.arange(len(self) + 1)  # Every file is one example.

  def file_ends(self) -> np.ndarray:
    return np.zeros(0, np.int64)  # Every file is one example.

  def labels(self) -> np.ndarray:
    if self.many_labels:
      raise ValueError(
        f"{self._file}: column {LABELS!r} has several labels per image, but "
        f"one is needed. Give a file with a column {LABEL!r}."
      )
    return np.asarray(self._labels, np.int64)[:, 0]


def _read_rows(file: str, label_key: str | None) -> tuple[list[_Row], str]:
  """The rows of a file, with full paths, and the name of the label column."""
  reader = csv.reader(
    io.StringIO(_read_text(file), newline=""),
    strict=True,
    skipinitialspace=True,
  )
  try:
    header = [name.strip() for name in next(reader, [])]
    column = _label_column(file, header, label_key)
    rows = [
      _parse_row(file, reader.line_num, header, cells, column)
      for cells in reader
      if cells  # An empty line.
    ]
  except csv.Error as error:
    raise ValueError(
      f"{file}, line {reader.line_num}: {error}. Correct the line."
    ) from error
  if not rows:
    raise ValueError(f"{file}: has a header only. List images below it.")
  return rows, column


def _read_text(file: str) -> str:
  check_reachable(file)
  fs, path = locate(file)
  try:
    content = fs.cat_file(path)
  except FINAL as error:
    raise ValueError(
      f"{file}: cannot be read: {error.strerror or error}. image_csv reads "
      "DATA_DIR/SPLIT.csv."
    ) from error
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = content[: error.start].count(b"\n") + 1
    raise ValueError(
      f"{file}, line {line}: is not UTF-8. Save the file in this encoding."
    ) from error


def _label_column(file: str, header: Sequence[str], key: str | None) -> str:
  """Checks the header; returns the name of the column with the labels."""
  found = [key] if key else [name for name in (LABEL, LABELS) if name in header]
  problem = ""
  if len(set(header)) < len(header):
    problem = "two columns have the same name"
  elif PATH not in header:
    problem = f"there is no column {PATH!r}"
  elif len(found) != 1 or found[0] not in header:
    wanted = repr(key) if key else f"{LABEL!r} or {LABELS!r}"
    problem = f"there must be one column {wanted}"
  if problem:
    raise ValueError(
      f"{file}, line 1: {problem}; the header has "
      f"{', '.join(map(repr, header)) or 'nothing'}. Give the columns names, "
      f"{PATH!r} and {LABEL!r} (or {LABELS!r}), with commas between; label_key "
      "names another column."
    )
  return found[0]


def _parse_row(
  file: str, line: int, header: Sequence[str], cells: Sequence[str], column: str
) -> _Row:
  where = f"{file}, line {line}"
  if len(cells) != len(header):
    raise ValueError(
      f"{where}: has {len(cells)} columns, the header {len(header)}. Put cells "
      "with commas into quotation marks."
    )
  row = dict(zip(header, cells, strict=True))
  path = expand(f"{where}: {PATH}", row[PATH].strip())
  if not is_remote(path):
    path = posixpath.join(posixpath.dirname(file), path)
  labels = [row[column]]
  if column == LABELS:
    labels = row[column].split(BETWEEN) if row[column].strip() else []
  labels = [label.strip() for label in labels]
  if "" in labels:
    raise ValueError(f"{where}: {column}={row[column]!r}: a label is empty.")
  return _Row(line, path, list(dict.fromkeys(labels)))


def _check_files(file: str, rows: Sequence[_Row]) -> None:
  """Raises ValueError for local images that do not exist.

  Lists every folder once, which is faster than checking every file.
  """
  if missing := list(_missing(rows)):
    shown = ", ".join(f"line {r.line} ({r.path})" for r in missing[:MAX_SHOWN])
    more = " and others" if len(missing) > MAX_SHOWN else ""
    raise ValueError(
      f"{file}: {len(missing):,} of {len(rows):,} images do not exist: {shown}"
      f"{more}. Paths are relative to the folder of the CSV file. Correct or "
      "remove these lines."
    )


def _missing(rows: Sequence[_Row]) -> Iterator[_Row]:
  names: dict[str, set[str]] = {}
  for row in rows:
    folder, name = os.path.split(row.path)
    if is_remote(folder):
      continue
    if folder not in names:
      is_folder = os.path.isdir(folder or ".")
      names[folder] = {*os.listdir(folder or ".")} if is_folder else set()
    if name not in names[folder]:
      yield row
