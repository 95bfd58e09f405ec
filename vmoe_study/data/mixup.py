"""Mixup (arXiv:1710.09412) on the device, within pairs of images."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def mixup(
  batch: Mapping[str, jax.Array], key: jax.Array, alpha: float
) -> dict[str, jax.Array]:
  """Blends every image with the other one of its pair: x <- w x + (1 - w) x'.

  Images 2i and 2i + 1 are a pair, as their order is random already. The result
  does not depend on the devices, and needs no communication if their number of
  images is even. The whole batch has one w ~ Beta(alpha, alpha), replaced by
  max(w, 1 - w), so that each image contributes at least half to itself. Labels
  are blended with the same w, which conserves the label mass of every pair.

  Args:
    batch: "image" (B, H, W, C) and "label" (B, classes).
    key: a PRNG key.
    alpha: parameter of the Beta distribution; larger values blend more.

  Returns:
    The blended "image" and "label"; other entries unchanged.

  Raises:
    ValueError: alpha is not positive, or B is odd.
  """
  if alpha <= 0:
    raise ValueError(
      f"mixup={alpha}: must be positive. Leave mixup out instead."
    )
  size = batch["image"].shape[0]
  if size % 2:
    raise ValueError(
      f"batch_size={size}: must be even, as mixup takes pairs of images. "
      "Change it, or leave mixup out."
    )
  weight = jax.random.beta(key, alpha, alpha)
  weight = jnp.maximum(weight, 1 - weight)

  def blend(x: jax.Array) -> jax.Array:
    pairs = x.reshape(size // 2, 2, *x.shape[1:])
    mixed = weight * pairs + (1 - weight) * jnp.flip(pairs, axis=1)
    return mixed.reshape(x.shape).astype(x.dtype)

  return {
    **batch,
    "image": blend(batch["image"]),
    "label": blend(batch["label"]),
  }
