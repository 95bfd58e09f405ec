"""Mixup (arXiv:1710.09412) on the device, within pairs of images."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def mixup(
  batch: Mapping[str, jax.Array], key: jax.Array, alpha: float
) -> dict[str, jax.Array]:
  """Blends every image with the other of its pair: x <- w x + (1 - w) x'.

  Images 2i and 2i + 1 are a pair. The input's order is random already, and
  pairs stay on one device, so that nothing is sent and the result does not
  depend on the devices. One w for the whole batch, w ~ Beta(alpha, alpha),
  folded to [1/2, 1] so that an image stays the greater part of itself. Images
  and labels share it, hence the label mass of every pair is conserved.

  Args:
    batch: "image" (B, H, W, C) and "label" (B, classes).
    key: a PRNG key.
    alpha: the Beta distribution's parameter; greater blends more.

  Returns:
    The blended "image" and "label"; other entries as they are.

  Raises:
    ValueError: alpha is not positive, or the batch is odd.
  """
  if alpha <= 0:
    raise ValueError(
      f"mixup's alpha is {alpha}; it must be positive: leave mixup out instead"
    )
  size = batch["image"].shape[0]
  if size % 2:
    raise ValueError(f"mixup of a batch of {size}; it takes pairs of images")
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
