"""Predicts the classes of images that do not belong to a data set.

The image operations and the class names come from the checkpoint.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vmoe_study.config import Config
from vmoe_study.data.augment import value_range
from vmoe_study.data.classes import ClassNames, class_label
from vmoe_study.data.image_files import ImageBatch, ImageLike, image_batches
from vmoe_study.data.ops import parse_ops
from vmoe_study.parallel.sharding import to_global, to_local
from vmoe_study.run.experiment import Model

BATCH_SIZE = 64
# Training loss -> function from logits (N, classes) to probabilities.
PROBABILITIES = {
  "softmax_xent": jax.nn.softmax,  # One class per image.
  "sigmoid_xent": jax.nn.sigmoid,  # Any number of classes per image.
}


@dataclasses.dataclass(frozen=True)
class Prediction:
  """The prediction for one image.

  Attributes:
    name: path or URL of the image, or its index among the given images.
    probabilities: float32 (num_classes,). They sum to 1 unless the model was
      trained on images with several classes: then they are independent.
    labels: the name of each class, or its number if it has none.
  """

  name: str
  probabilities: np.ndarray = dataclasses.field(repr=False)
  labels: Sequence[str] = dataclasses.field(repr=False)

  def top(self, count: int = 5) -> list[tuple[str, float]]:
    """The most probable classes with their probabilities, in order."""
    best = np.argsort(-self.probabilities, kind="stable")[:count]
    return [(self.labels[i], float(self.probabilities[i])) for i in best]


class Predictor:
  """Applies a trained model to images from files.

  Attributes:
    ops: the image operations, as text.
    batch_size: images per batch; whole routing groups on every device.
  """

  def __init__(
    self,
    model: Model,
    variables: Any,
    class_names: ClassNames | None = None,
    *,
    ops: str | None = None,
    batch_size: int = BATCH_SIZE,
  ):
    """Takes the parts of a checkpoint.

    Args:
      model: the model.
      variables: variables of the model.
      class_names: class names of the model; if None or empty, classes are
        numbers.
      ops: image operations; by default those of the first evaluation.
      batch_size: images per batch, rounded up to whole groups.

    Raises:
      ValueError: there are neither `ops` nor evaluations in the config, or the
        operations are random or make images that do not fit the model.
    """
    self.ops = evaluation_ops(model.config) if ops is None else ops
    self._ops = parse_ops(self.ops)
    if self._ops.is_random:
      raise ValueError(
        f"ops={self.ops!r}: predictions must not draw random numbers. Use "
        "deterministic operations such as resize_small and central_crop."
      )
    blank = np.zeros(model.image_shape, np.uint8)
    self._image_shape = self._ops(blank).shape
    model.check_images(f"ops={self.ops!r}", self._image_shape)
    unit = model.mesh.size * model.config.group_images
    self.batch_size = -(-batch_size // unit) * unit
    self._unit = unit
    self._model, self._variables = model, variables
    self._labels = [
      class_label(class_names or (), number)
      for number in range(model.config.model.fields["num_classes"])
    ]

  def batches(
    self, named: Sequence[tuple[str, ImageLike]]
  ) -> Iterator[ImageBatch]:
    """Reads images of `data.image_files.name_images`."""
    whole = -(-len(named) // self._unit) * self._unit
    return image_batches(
      named,
      self._ops,
      self._image_shape,
      batch_size=min(self.batch_size, whole),
      max_pixels=self._model.config.data.max_pixels,
    )

  def to_devices(self, batch: ImageBatch) -> jax.Array:
    """The images as the model takes them, float32 (B, H, W, C)."""
    images = to_global(self._model.mesh, batch.image)
    return value_range(images, *self._ops.value_range)

  def predict(self, batch: ImageBatch) -> list[Prediction]:
    """The prediction for each image of a batch that could be read."""
    logits = self._model.predict(self._variables, self.to_devices(batch))
    probabilities = PROBABILITIES[self._model.config.train.loss]
    rows = np.asarray(probabilities(to_local(logits).astype(np.float32)))
    return [
      Prediction(name, row, self._labels)
      for name, row in zip(batch.names, rows, strict=False)  # Then padding.
    ]

  def features(self, batch: ImageBatch) -> np.ndarray:
    """The features before the head, float32 (N, width)."""
    rows = self._model.features(self._variables, self.to_devices(batch))
    return to_local(rows)[: len(batch.names)].astype(np.float32)


def evaluation_ops(config: Config) -> str:
  """The image operations of the first evaluation.

  Raises:
    ValueError: the config has no evaluation.
  """
  for spec in config.evaluations.values():
    return spec.data.ops
  raise ValueError(
    "config.evaluations={}: has no image operations. Give them, such as "
    "ops='resize_small(256)|central_crop(224)|value_range(-1, 1)'."
  )
