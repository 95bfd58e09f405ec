"""`digits`: scikit-learn's 1,797 handwritten digits, 8x8 grey, 10 classes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from vmoe_study.data.datasets import as_png, unregistered

NUM_TEST = 359
SPLIT_SEED = 0

with unregistered():

  class Digits(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `digits`: 1,438 training and 359 test images.

    The split is stratified by class and fixed by a seed. Pixels, 0 to 16 in
    scikit-learn, are scaled to 0..255.
    """

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
      return self.dataset_info_from_configs(
        description="Hand-written digits from scikit-learn's load_digits.",
        features=tfds.features.FeaturesDict(
          {
            "image": tfds.features.Image(shape=(8, 8, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
          }
        ),
        supervised_keys=("image", "label"),
        homepage="https://archive.ics.uci.edu/dataset/80",
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      from sklearn.datasets import load_digits
      from sklearn.model_selection import train_test_split

      digits = load_digits()
      train, test = train_test_split(
        np.arange(len(digits.target)),
        test_size=NUM_TEST,
        stratify=digits.target,
        random_state=SPLIT_SEED,
      )
      return {
        "train": self._generate_examples(digits, train),
        "test": self._generate_examples(digits, test),
      }

    def _generate_examples(
      self, digits: Any, rows: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
      images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
      for key, row in enumerate(rows):
        yield (
          key,
          {
            "image": as_png(images[row][..., None]),
            "label": int(digits.target[row]),
          },
        )
