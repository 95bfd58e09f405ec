"""`fashion_mnist` from the files of the Debian package dataset-fashion-mnist.

TFDS's own builder downloads files whose checksums differ from those of the
package. This builder reads the package's files, where it installs them or in
`manual_dir`.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow_datasets.image_classification import FashionMNIST

from vmoe_study.data.datasets import as_png, unregistered

DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
INSTRUCTIONS = "They come with `apt-get install dataset-fashion-mnist`."
FILES = {
  "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
  "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


def read_idx(path: Path) -> np.ndarray:
  """Reads one gzipped idx file of unsigned bytes.

  The header is two zero bytes, a type code (8: uint8), the number of
  dimensions, then each dimension as a big-endian 32-bit integer.

  Raises:
    ValueError: the file does not begin like this.
  """
  data = gzip.decompress(path.read_bytes())
  if data[:3] != b"\x00\x00\x08":
    raise ValueError(
      f"{path}: starts with {data[:3]!r}; an idx file of bytes must start with "
      "b'\\x00\\x00\\x08'. Replace it with the original file."
    )
  shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
  return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


with unregistered():

  class LocalFashionMnist(FashionMNIST):
    """TFDS's `fashion_mnist` (60,000 + 10,000 images) from local files."""

    name = "fashion_mnist"
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    default_manual_dir = DEBIAN_DIR

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      folder = Path(dl_manager.manual_dir)
      return {
        split: self._generate_examples(folder / images, folder / labels)
        for split, (images, labels) in FILES.items()
      }

    def _generate_examples(
      self, images: Path, labels: Path
    ) -> Iterator[tuple[int, dict[str, Any]]]:
      pairs = zip(read_idx(images), read_idx(labels), strict=True)
      for key, (image, label) in enumerate(pairs):
        yield key, {"image": as_png(image[..., None]), "label": int(label)}
