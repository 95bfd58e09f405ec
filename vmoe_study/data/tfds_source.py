"""Prepared TFDS data sets by random access, without TensorFlow."""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vmoe_study.data import builders
from vmoe_study.data.dataset_specs import DATASETS
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

LABELS_BLOCK = 1000  # Records that one thread reads in turn.
FORMATS = {"tfrecord": TfRecords, "array_record": ArrayRecords}


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """One split of a prepared TFDS data set; a `Source`, see there."""

  records: Records
  features: tfds.features.FeaturesDict
  label_key: str

  @property
  def _label(self) -> tfds.features.FeatureConnector:
    label = self.features[self.label_key]
    return getattr(label, "feature", label)  # Of a Sequence of class labels.

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
      RecordError: the record is damaged, or not an example of this data set.
    """
    record = self.records[index]
    try:
      example = self.features.deserialize_example_np(
        record, decoders={"image": tfds.decode.SkipDecoding()}
      )
    except Exception as error:  # protobuf and TFDS raise many types.
      raise RecordError(
        f"{self.where(index)}: not an example of this data set: {error}. "
        "Prepare the data set again."
      ) from error
    return {"image": example["image"], "label": example[self.label_key]}

  def labels(self) -> np.ndarray:
    """Reads all records on the first call; the labels are cached on disk.

    Raises:
      ValueError: the data set has several labels per image.
      RecordError: a record is damaged.
    """
    if isinstance(self.features[self.label_key], tfds.features.Sequence):
      raise ValueError(
        f"label_key={self.label_key!r}: has several labels per image, but one "
        "is needed. Choose a single-label data set."
      )
    key = digest(f"{self.records.key()} {self.label_key}")
    cached = cache_dir() / "labels" / f"{key}.i64"
    if not cached.exists():
      write_atomically(cached, self._read_labels().tobytes())
    return np.fromfile(cached, np.int64)

  def _read_labels(self) -> np.ndarray:
    """Reads in several threads, as remote stores have a high latency."""
    blocks = np.array_split(np.arange(len(self)), -(-len(self) // LABELS_BLOCK))
    with ThreadPoolExecutor(FILE_THREADS) as pool:
      return np.concatenate(list(pool.map(self._labels_of, blocks)))

  def _labels_of(self, indices: np.ndarray) -> np.ndarray:
    return np.asarray([self[int(i)]["label"] for i in indices], np.int64)


def open_tfds(
  name: str, split: str, data_dir: str | None, label_key: str | None
) -> TfdsSource:
  """Opens a split; arguments and errors are those of `sources.open_split`."""
  info = builders.open_prepared(name, data_dir).info
  if label_key is None:
    label_key = DATASETS[name].label_key if name in DATASETS else "label"
  for key in ("image", label_key):
    if key not in info.features:
      raise ValueError(
        f"label_key={label_key!r}: data set {name!r} has no feature {key!r}. "
        f"Choose one of {', '.join(sorted(info.features))}."
      )
  file_format = info.file_format.value
  if file_format not in FORMATS:
    raise ValueError(
      f"name={name!r}: the data set is stored as {file_format!r}; it must be "
      f"one of {', '.join(FORMATS)}. Convert it with TFDS's convert_format."
    )
  try:
    spans = info.splits[split].file_instructions
  except (KeyError, ValueError) as error:
    raise ValueError(
      f"split={split!r}: data set {name!r} has no such split. Choose one of "
      f"{', '.join(info.splits)}, or a slice such as 'train[:90%]'."
    ) from error
  if not spans:
    raise ValueError(
      f"split={split!r}: is empty in data set {name!r}. Choose a larger part."
    )
  features = tfds.features.FeaturesDict(
    {key: info.features[key] for key in ("image", label_key)}
  )
  return TfdsSource(FORMATS[file_format](spans), features, label_key)
