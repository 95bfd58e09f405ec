"""Prepared data sets by random access: example i, undecoded."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds

from vmoe_study.data import builders
from vmoe_study.data.dataset_specs import DATASETS
from vmoe_study.data.datasets.image_folder import ImageFolderSource
from vmoe_study.data.records import (
  FILE_THREADS,
  ArrayRecords,
  RecordError,
  Records,
  TfRecords,
  cache_dir,
  digest,
)
from vmoe_study.files.atomic import write_atomically

LABELS_BLOCK = 1000  # read by one thread


class Source(Protocol):
  """What the input pipeline reads; pickles, to reach worker processes."""

  @property
  def num_classes(self) -> int:
    """The number of classes of the labels."""

  @property
  def label_names(self) -> Sequence[str]:
    """Their names, in class order."""

  @property
  def channels(self) -> int:
    """Of the images: 1 (grey) or 3 (RGB)."""

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Returns {"image": bytes or uint8 (H, W, C), "label": int or ints}."""

  def labels(self) -> np.ndarray:
    """Returns int64 (N,): every label, no image decoded."""

  def where(self, index: int) -> str:
    """Names example `index` for a reader of error messages."""

  def file_ends(self) -> np.ndarray:
    """Examples at the end of a file of many: missing where it was cut."""


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """One split of a prepared TFDS data set (TFRecord or ArrayRecord)."""

  records: Records
  features: tfds.features.FeaturesDict
  label_key: str

  @property
  def _label(self) -> tfds.features.FeatureConnector:
    label = self.features[self.label_key]
    return getattr(label, "feature", label)  # a Sequence of class labels

  @property
  def num_classes(self) -> int:
    return self._label.num_classes

  @property
  def label_names(self) -> Sequence[str]:
    return self._label.names

  @property
  def channels(self) -> int:
    return 1 if self.features["image"].shape[-1] == 1 else 3

  def __len__(self) -> int:
    return len(self.records)

  def where(self, index: int) -> str:
    return self.records.where(index)

  def file_ends(self) -> np.ndarray:
    return self.records.file_ends()

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Reads example `index`; the image stays encoded.

    Raises:
      RecordError: the record is damaged or is no such example.
    """
    record = self.records[index]
    try:
      example = self.features.deserialize_example_np(
        record, decoders={"image": tfds.decode.SkipDecoding()}
      )
    except Exception as error:  # protobuf and TFDS raise many kinds
      raise RecordError(
        f"{self.where(index)}: not an example of this data set ({error})"
      ) from error
    return {"image": example["image"], "label": example[self.label_key]}

  def labels(self) -> np.ndarray:
    """Reads every record (but decodes no image); once, then they are cached.

    Raises:
      ValueError: the data set has several labels per image.
      RecordError: a record is damaged.
    """
    if isinstance(self.features[self.label_key], tfds.features.Sequence):
      raise ValueError(
        f"feature {self.label_key!r} holds several labels per image, but one"
        " label is needed; choose a single-label data set"
      )
    key = digest(f"{self.records.key()} {self.label_key}")
    cached = cache_dir() / "labels" / f"{key}.i64"
    if not cached.exists():
      write_atomically(cached, self._read_labels().tobytes())
    return np.fromfile(cached, np.int64)

  def _read_labels(self) -> np.ndarray:
    """In several threads, as remote files answer late."""
    blocks = np.array_split(np.arange(len(self)), -(-len(self) // LABELS_BLOCK))
    with ThreadPoolExecutor(FILE_THREADS) as pool:
      return np.concatenate(list(pool.map(self._labels_of, blocks)))

  def _labels_of(self, indices: np.ndarray) -> np.ndarray:
    return np.asarray([self[int(i)]["label"] for i in indices], np.int64)


def _open_image_folder(split: str, data_dir: str | None) -> Source:
  if data_dir is None:
    raise ValueError(
      "image_folder needs data_dir: the folder that holds SPLIT/CLASS/*.jpg"
    )
  return ImageFolderSource(data_dir, split)


RECORDS = {"tfrecord": TfRecords, "array_record": ArrayRecords}


def open_source(
  name: str,
  split: str,
  data_dir: str | None = None,
  label_key: str | None = None,
) -> Source:
  """Opens one split of a prepared data set. Never downloads.

  Args:
    name: a TFDS name ("name", "name/config", "name:version"), or
      "image_folder".
    split: a TFDS split expression, e.g. "train" or "train[:99%]"; for
      image_folder the sub-folder of that name.
    data_dir: the TFDS folder (a path or URL); TFDS's default when None.
    label_key: the label's feature; by default the recipe's, else "label".

  Raises:
    MissingDataError: the data set is not prepared; names the command.
    ValueError: no such split, label feature or readable format.
  """
  if name == "image_folder":
    return _open_image_folder(split, data_dir)
  info = builders.open_prepared(name, data_dir).info
  if label_key is None:
    label_key = DATASETS[name].label_key if name in DATASETS else "label"
  for key in ("image", label_key):
    if key not in info.features:
      raise ValueError(
        f"data set {name!r} has no feature {key!r}; it has"
        f" {', '.join(sorted(info.features))}; set label_key"
      )
  file_format = info.file_format.value
  if file_format not in RECORDS:
    raise ValueError(
      f"data set {name!r} is stored as {file_format!r}; readable are"
      f" {', '.join(RECORDS)}; convert it with TFDS's convert_format"
    )
  try:
    spans = info.splits[split].file_instructions
  except (KeyError, ValueError) as error:
    raise ValueError(
      f"data set {name!r} has no split {split!r}; it has"
      f" {', '.join(info.splits)}, and slices such as 'train[:90%]'"
    ) from error
  if not spans:
    raise ValueError(
      f"split {split!r} of data set {name!r} is empty; choose a larger part"
    )
  features = tfds.features.FeaturesDict(
    {key: info.features[key] for key in ("image", label_key)}
  )
  return TfdsSource(RECORDS[file_format](spans), features, label_key)
