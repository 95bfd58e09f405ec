"""What a data set is like, told from a part of it: as a run would read it."""

import dataclasses
import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vmoe_study.data.examples import DataSpec, Example, Loader
from vmoe_study.data.records import RecordError

EXAMPLES = 1000
THREADS = 8


@dataclasses.dataclass(frozen=True)
class Probe:
  """What reading some examples of a data set told.

  Attributes:
    num_examples: of the whole split.
    num_classes: that the data set declares.
    image_shape: (H, W, C) after the operations.
    num_read: examples that were read, decoded and augmented.
    damaged: of these, the errors of those that cannot be used.
    label_range: smallest and largest label read; None without any.
    num_labels_seen: different labels among those read.
    most_labels: of one image.
  """

  num_examples: int
  num_classes: int
  image_shape: tuple[int, ...]
  num_read: int
  damaged: tuple[str, ...]
  label_range: tuple[int, int] | None
  num_labels_seen: int
  most_labels: int


def probe(spec: DataSpec) -> Probe:
  """Reads up to `EXAMPLES` examples, spread evenly, and the ends of all files.

  The end of a file is where it shows that the file was cut short.

  Raises:
    MissingDataError: the data set is not prepared; names the command.
    ValueError: it cannot be opened, or nothing in it can be read.
  """
  loader = Loader(dataclasses.replace(spec, on_error="skip"))
  count = len(loader.source)
  spread = np.linspace(0, count - 1, min(count, EXAMPLES)).astype(int)
  indices = np.union1d(spread, loader.source.file_ends()).tolist()
  with ThreadPoolExecutor(THREADS) as pool:
    found = list(pool.map(functools.partial(_load, loader), indices))
  labels = [np.zeros(0, int)]
  labels += [
    example["labels"] for example in found if isinstance(example, dict)
  ]
  every = np.concatenate(labels)
  return Probe(
    num_examples=count,
    num_classes=loader.source.num_classes,
    image_shape=tuple(loader.image_shape or ()),
    num_read=len(found),
    damaged=tuple(error for error in found if isinstance(error, str)),
    label_range=(int(every.min()), int(every.max())) if every.size else None,
    num_labels_seen=len(np.unique(every)),
    most_labels=max(map(len, labels)),
  )


def _load(loader: Loader, index: int) -> Example | str:
  """An example without its image, or what is wrong with it."""
  try:
    example = loader.load(index, np.random.default_rng(index))
  except RecordError as error:
    return str(error)
  return {"labels": example["labels"]}
