"""Images with their routing, as the input of pictures."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from numpy import ndarray as Array

from vmoe_study.inspection.images import EvaluationImages
from vmoe_study.inspection.measure import (
  LayerRouting,
  TokenRouting,
  layer_names,
  measure_layer_routing,
)
from vmoe_study.run.experiment import Model


@dataclasses.dataclass(frozen=True)
class Gallery:
  """Images as the model sees them, with their routing.

  Attributes:
    images: whole groups of images, of which the first `count` are shown.
    titles: title of each image that is shown.
    count: number of images to show.
    patch_size: side of a patch in pixels.
    layers: routing of each layer, by name and in order.
  """

  images: Float[Array, "B H W channels"]
  titles: Sequence[str]
  count: int
  patch_size: int
  layers: Mapping[str, LayerRouting]

  @property
  def grid(self) -> tuple[int, int]:
    """Number of patches along height and width."""
    height, width = self.images.shape[1:3]
    return height // self.patch_size, width // self.patch_size

  def picture(self, number: int) -> Float[Array, "H W 3"]:
    """One image, scaled to [0, 1]."""
    image = self.images[number]
    image = (image - image.min()) / max(np.ptp(image), 1e-6)
    return np.broadcast_to(image, (*image.shape[:2], 3))

  def only(self, number: int) -> "Gallery":
    """A gallery of one of the images, with the tensors of its group."""
    one = slice(number, number + 1)
    layers = {
      name: layer._replace(tokens=TokenRouting(*(x[one] for x in layer.tokens)))
      for name, layer in self.layers.items()
    }
    return dataclasses.replace(
      self,
      images=self.images[one],
      titles=self.titles[one],
      count=1,
      layers=layers,
    )

  def on_grid(
    self, tokens: Float[Array, "B L E"], number: int
  ) -> Float[Array, "height width E"]:
    """Arranges one image's tokens on the patch grid, without class token."""
    height, width = self.grid
    return tokens[number, -height * width :].reshape(height, width, -1)


def make_gallery(
  model: Model, variables: Any, images: EvaluationImages, num_images: int
) -> Gallery:
  """Computes the routing of a few images.

  Raises:
    ValueError: the data set has fewer images than a group.
  """
  shown, titles = images_to_show(images, num_images)
  measure = measure_layer_routing(model.evaluation_module)
  return gallery_of(model, measure(variables, shown), shown, titles)


def images_to_show(
  images: EvaluationImages, num_images: int
) -> tuple[jax.Array, list[str]]:
  """Whole groups of images on the devices, and the titles of the first ones.

  Raises:
    ValueError: the data set has fewer images than a group.
  """
  batch = images.to_devices(next(iter(images.batches(num_images))))
  count = min(num_images, int(batch["mask"].sum()))
  classes = jax.device_get(batch["label"]).argmax(axis=1)
  return batch["image"], [images.class_names[n] for n in classes[:count]]


def gallery_of(
  model: Model,
  routing: Mapping[str, LayerRouting],
  images: jax.Array,
  titles: Sequence[str],
) -> Gallery:
  """Makes the gallery of images whose routing was measured.

  Args:
    model: the model.
    routing: result of `measure_layer_routing` for all images.
    images: whole groups (B, H, W, channels), on the devices.
    titles: titles of the images to show, which are the first ones.
  """
  return Gallery(
    images=jax.device_get(images),
    titles=titles,
    count=len(titles),
    patch_size=model.module.patch_size,
    layers={
      layer: jax.device_get(routing[layer])
      for layer in layer_names(model.evaluation_module)
    },
  )
