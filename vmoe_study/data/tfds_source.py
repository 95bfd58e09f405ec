"""Prepared TFDS data sets with random access, without TensorFlow."""

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vmoe_study.data import builders
from vmoe_study.data.classes import ClassNames
from vmoe_study.data.dataset_specs import find_spec
from vmoe_study.data.record_index import (
  FILE_THREADS,
  all_indices,
  cache_dir,
  digest,
  tfrecord_index,
)
from vmoe_study.data.records import (
  RecordError,
  Records,
  TfRecords,
  intact,
  open_array_records,
)
from vmoe_study.data.spec import DataSpec
from vmoe_study.data.tfds_metadata import check_files
from vmoe_study.files.atomic import write_atomically

LABELS_READ = 64  # Records of one request.
FORMATS = {"tfrecord": TfRecords, "array_record": open_array_records}


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """One split of a prepared TFDS data set; implements `sources.Source`."""

  records: Records
  features: tfds.features.FeaturesDict
  label_key: str
  given_classes: int | None = None
  empty_folders: Sequence[str] = ()
  notes: Sequence[str] = ()

  @property
  def num_classes(self) -> int:
    """Number of classes of the label feature, or else of the config.

    Raises:
      ValueError: neither has it.
    """
    label = _single_label(self.features[self.label_key])
    classes = getattr(label, "num_classes", None) or self.given_classes
    if classes is None:
      raise ValueError(
        f"{self.where(0)}: label_key={self.label_key!r} has integers without a "
        "number of classes. Set num_classes."
      )
    return classes

  @property
  def class_names(self) -> ClassNames:
    label = _single_label(self.features[self.label_key])
    names = tuple(getattr(label, "names", None) or ())
    # TFDS uses the numbers of classes as names if they have none.
    is_named = any(name != str(i) for i, name in enumerate(names))
    return names if is_named else ()

  @property
  def many_labels(self) -> bool:
    return isinstance(self.features[self.label_key], tfds.features.Sequence)

  @property
  def channels(self) -> int:
    return 1 if self.features["image"].shape[-1] == 1 else 3

  def __len__(self) -> int:
    return len(self.records)

  def where(self, index: int) -> str:
    return self.records.where(index)

  def file_ends(self) -> np.ndarray:
    return self.records.file_ends()

  @property
  def is_remote(self) -> bool:
    return self.records.is_remote

  def blocks(self) -> np.ndarray:
    return self.records.blocks()

  def read(self, indices: Sequence[int]) -> list[dict[str, Any] | RecordError]:
    records = self.records.read(indices)
    return [self._parse(i, r) for i, r in zip(indices, records, strict=True)]

  def __getitem__(self, index: int) -> dict[str, Any]:
    return intact(self.read([index])[0])

  def _parse(
    self, index: int, record: bytes | RecordError
  ) -> dict[str, Any] | RecordError:
    """Parses an example; its image stays encoded."""
    if isinstance(record, RecordError):
      return record
    is_file = isinstance(self.features["image"], tfds.features.Image)
    decoders = {"image": tfds.decode.SkipDecoding()} if is_file else None
    try:
      example = self.features.deserialize_example_np(record, decoders=decoders)
    except Exception as error:  # protobuf and TFDS raise many types.
      return RecordError(
        f"{self.where(index)}: not an example of this data set: {error}. "
        "Prepare the data set again."
      )
    return {"image": example["image"], "label": example[self.label_key]}

  def labels(self) -> np.ndarray:
    """Reads all records on the first call; the labels are cached on disk.

    Raises:
      ValueError: the data set has several labels per image.
      RecordError: a record is damaged.
    """
    if self.many_labels:
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
    parts = np.array_split(np.arange(len(self)), -(-len(self) // LABELS_READ))
    with ThreadPoolExecutor(FILE_THREADS) as pool:
      return np.concatenate(list(pool.map(self._labels_of, parts)))

  def _labels_of(self, indices: np.ndarray) -> np.ndarray:
    examples = map(intact, self.read(indices.tolist()))
    return np.asarray([example["label"] for example in examples], np.int64)


def make_indices(
  spec: DataSpec, process_index: int, process_count: int, fallback_folder: str
) -> None:
  """Makes the indices of one host's share of a data set's TFRecord files.

  Args:
    spec: spec of a data set in an object store.
    process_index: number of this host.
    process_count: number of hosts.
    fallback_folder: folder for the indices of read-only data.
  """
  builder = builders.open_prepared(spec.name, spec.data_dir)
  if builder.info.file_format.value == "tfrecord":
    spans = _spans(builder, spec.name, spec.split)
    urls = [str(span.filename) for span in spans[process_index::process_count]]
    all_indices(
      functools.partial(tfrecord_index, fallback_folder=fallback_folder), urls
    )


def open_tfds(
  name: str,
  split: str,
  data_dir: str | None,
  label_key: str | None,
  num_classes: int | None = None,
) -> TfdsSource:
  """Opens a split; arguments and errors are those of `sources.open_split`."""
  builder = builders.open_prepared(name, data_dir)
  info = builder.info
  if label_key is None:
    spec = find_spec(name)
    label_key = spec.label_key if spec else "label"
  for key in ("image", label_key):
    if key not in info.features:
      raise ValueError(
        f"label_key={label_key!r}: data set {name!r} has no feature {key!r}. "
        f"Choose one of {', '.join(sorted(info.features))}."
      )
  _check_image(name, info.features["image"])
  _check_label(name, label_key, info.features[label_key])
  features = tfds.features.FeaturesDict(
    {key: info.features[key] for key in ("image", label_key)}
  )
  records = open_records(builder, name, split)
  return TfdsSource(records, features, label_key, num_classes)


def open_records(
  builder: tfds.core.DatasetBuilder, name: str, split: str
) -> Records:
  """Opens the records of a split of a prepared data set.

  Raises:
    ValueError: there is no such split, it is empty, or the files are in another
      folder or have an unknown format.
  """
  file_format = builder.info.file_format.value
  if file_format not in FORMATS:
    raise ValueError(
      f"name={name!r}: the data set is stored as {file_format!r}; it must be "
      f"one of {', '.join(FORMATS)}. Convert it with TFDS's convert_format."
    )
  return FORMATS[file_format](_spans(builder, name, split))


def _spans(
  builder: tfds.core.DatasetBuilder, name: str, split: str
) -> Sequence[Any]:
  """The file spans that make up a split."""
  info = builder.info
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
  check_files(name, str(builder.data_path), [s.filename for s in spans])
  return spans


def _single_label(
  label: tfds.features.FeatureConnector,
) -> tfds.features.FeatureConnector:
  """The feature of a single label, even if examples have several labels."""
  is_sequence = isinstance(label, tfds.features.Sequence)
  return label.feature if is_sequence else label


def _check_image(name: str, image: tfds.features.FeatureConnector) -> None:
  """Raises ValueError unless images are uint8 (height, width, channels)."""
  kinds = tfds.features.Image, tfds.features.Tensor
  dtype = getattr(image, "np_dtype", None)
  rank = len(getattr(image, "shape", None) or ())
  if not isinstance(image, kinds) or dtype != np.uint8 or rank != 3:
    raise ValueError(
      f"name={name!r}: feature 'image' is {_one_line(image)}; only images of "
      "uint8 (height, width, channels) can be read. Convert the data set."
    )


def _check_label(
  name: str, key: str, label: tfds.features.FeatureConnector
) -> None:
  """Raises ValueError unless the labels are integers, or lists of them."""
  single = _single_label(label)
  is_number = isinstance(single, tfds.features.Tensor) and single.shape == ()
  if not is_number or np.dtype(single.np_dtype).kind not in "iu":
    raise ValueError(
      f"name={name!r}: feature {key!r} is {_one_line(label)}; labels must be "
      "integers, or a sequence of integers. Set label_key to another feature, "
      "or convert the data set."
    )


def _one_line(feature: tfds.features.FeatureConnector) -> str:
  return " ".join(repr(feature).split())
