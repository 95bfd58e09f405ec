"""Resources of a run's input: cores for decoding, requests to object stores.

Images per second and core are measured on this machine, if the data set can be
read here.
"""

import dataclasses
import math
from collections.abc import Iterator

from vmoe_study.config import Config
from vmoe_study.data.decode_rate import decode_rate
from vmoe_study.data.examples import ExampleReader
from vmoe_study.data.records import BLOCK_BYTES

# Of Google Cloud Storage, for reading objects of the standard class in a region
# (https://cloud.google.com/storage/pricing-examples, class B operations). Data
# that stay in the region cost nothing more.
DOLLARS_PER_REQUEST = 0.0004 / 1000
SAMPLE = 64  # Images whose mean size is taken.


@dataclasses.dataclass(frozen=True)
class InputEstimate:
  """The training input of a run.

  Attributes:
    images: number of training images, over all epochs.
    images_per_core: images/s decoded by one core.
    image_bytes: mean size of an image as stored.
    requests: number of reads from an object store; 0 for local data.
  """

  images: int
  images_per_core: float
  image_bytes: float
  requests: int

  def describe(self, images_per_second: float | None) -> Iterator[str]:
    """Yields lines for the user.

    Args:
      images_per_second: training speed of the devices; None if not known.
    """
    if images_per_second:
      cores = math.ceil(images_per_second / self.images_per_core)
      yield (
        f"Input: {images_per_second:,.0f} images/s take {cores:,} cores over "
        f"all hosts, at {self.images_per_core:,.0f} images/s per core "
        "(measured here on the training data), and "
        f"{images_per_second * self.image_bytes / 1e6:,.0f} MB/s."
      )
    if self.requests:
      dollars = 10 ** round(math.log10(self.requests * DOLLARS_PER_REQUEST))
      yield (
        f"The run reads {self.images:,} images from an object store with "
        f"{self.requests:,} requests, which cost on the order of "
        f"${dollars:,g} at $0.0004 per 1,000 "
        "(cloud.google.com/storage/pricing-examples)."
      )


def estimate_input(config: Config) -> InputEstimate | None:
  """Measures a few training images; None if the data cannot be read here.

  Args:
    config: config of the run. Of a mixture, only the main data set counts.

  Raises:
    ValueError: the data set cannot be used.
  """
  data, train = config.data, config.train
  try:
    reader = ExampleReader(data)
  except OSError:  # Not prepared, or the store cannot be reached from here.
    return None
  source = reader.source
  sample = source.read(range(min(SAMPLE, len(source))))
  sizes = [len(found["image"]) for found in sample if isinstance(found, dict)]
  size = sum(sizes) / len(sizes)
  images = train.total_steps(len(source)) * train.batch_size
  per_request = 1.0 if train.shuffle == "full" else max(1, BLOCK_BYTES / size)
  requests = math.ceil(images / per_request) if source.is_remote else 0
  return InputEstimate(images, decode_rate(reader), size, requests)
