"""Reads a sample of a data set as a run would, and describes it."""

import dataclasses
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vmoe_study.data.classes import ClassNames
from vmoe_study.data.examples import Example, ExampleReader
from vmoe_study.data.records import RecordError
from vmoe_study.data.sources import open_source
from vmoe_study.data.spec import DataSpec

EXAMPLES = 1000
THREADS = 8


@dataclasses.dataclass(frozen=True)
class Probe:
  """A description of a data set, from a sample of its examples.

  Attributes:
    num_examples: size of the whole split.
    num_classes: number of classes that the data set declares.
    image_shape: (H, W, C) after the operations.
    num_read: size of the sample.
    damaged: error messages of the examples that cannot be used.
    label_range: smallest and largest label of the sample; None if it has none.
    num_labels_seen: number of different labels in the sample.
    most_labels: largest number of labels of an image.
    class_names: names by class number; empty if the classes have only numbers.
    empty_folders: paths of class folders without images.
    notes: messages about skipped files and folders.
  """

  num_examples: int
  num_classes: int
  image_shape: tuple[int, ...]
  num_read: int
  damaged: tuple[str, ...]
  label_range: tuple[int, int] | None
  num_labels_seen: int
  most_labels: int
  class_names: ClassNames = ()
  empty_folders: Sequence[str] = ()
  notes: Sequence[str] = ()


def probe(spec: DataSpec) -> Probe:
  """Reads up to `EXAMPLES` examples, evenly spaced, and the end of every file.

  The end of a file shows whether it is truncated.

  Raises:
    MissingDataError: the data set is not prepared; names the command.
    ValueError: the data set cannot be opened, or no example can be used.
  """
  source = open_source(spec)
  # Named classes are numbered by the run, which is not known here.
  num_classes = max(spec.num_classes, len(source.class_names))
  reader = ExampleReader(
    dataclasses.replace(spec, on_error="skip", num_classes=num_classes),
    source=source,
  )
  count = len(reader.source)
  spread = np.linspace(0, count - 1, min(count, EXAMPLES)).astype(int)
  indices = np.union1d(spread, reader.source.file_ends()).tolist()
  with ThreadPoolExecutor(THREADS) as pool:
    found = list(pool.map(functools.partial(_read, reader), indices))
  labels = [np.zeros(0, int)]
  labels += [
    example["labels"] for example in found if isinstance(example, dict)
  ]
  every = np.concatenate(labels)
  return Probe(
    num_examples=count,
    num_classes=reader.source.num_classes,
    image_shape=tuple(reader.image_shape or ()),
    num_read=len(found),
    damaged=tuple(error for error in found if isinstance(error, str)),
    label_range=(int(every.min()), int(every.max())) if every.size else None,
    num_labels_seen=len(np.unique(every)),
    most_labels=max(map(len, labels)),
    class_names=reader.source.class_names,
    empty_folders=reader.source.empty_folders,
    notes=reader.source.notes,
  )


def _read(reader: ExampleReader, index: int) -> Example | str:
  """Returns an example without its image, or the error message."""
  try:
    example = reader.read(index, np.random.default_rng(index))
  except RecordError as error:
    return str(error)
  return {"labels": example["labels"]}
