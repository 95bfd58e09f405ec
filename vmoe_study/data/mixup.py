"""Mixup (arXiv:1710.09412) on the device.

Every image is blended with a partner, x <- w x + (1 - w) x', and so are its
labels. The weight is w ~ Beta(alpha, alpha), replaced by max(w, 1 - w), so that
each image keeps a weight of at least one half.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

Batch = Mapping[str, jax.Array]


def mixup(batch: Batch, key: jax.Array, alpha: float) -> dict[str, jax.Array]:
  """Blends every image with the other one of its pair.

  Images 2i and 2i + 1 form a pair, because their order is already random. The
  whole batch has one w. The result does not depend on the devices, and no
  communication is needed if every device has an even number of images. The
  label mass of every pair is conserved.

  Args:
    batch: "image" (B, H, W, C) and "label" (B, classes).
    key: a PRNG key.
    alpha: parameter of the Beta distribution; larger values blend more.

  Returns:
    The blended "image" and "label"; other entries unchanged.

  Raises:
    ValueError: alpha is not positive, or B is odd.
  """
  _check(batch, alpha, 2, "mixup takes pairs of images")
  weight = _weights(key, alpha, ())
  return _blended(batch, 2, weight, lambda pairs: jnp.flip(pairs, axis=1))


def rolled_mixup(
  batch: Batch, key: jax.Array, alpha: float, num_devices: int
) -> dict[str, jax.Array]:
  """Blends every image with the next one on its device.

  The last image is blended with the first. Each device has its own w. This is
  the mixup of the public V-MoE recipes; its result depends on the number of
  devices.

  Args:
    batch: see `mixup`; devices have equal, consecutive shares of it.
    key: a PRNG key.
    alpha: parameter of the Beta distribution; larger values blend more.
    num_devices: number of shares.

  Returns:
    See `mixup`.

  Raises:
    ValueError: alpha is not positive, or the devices do not divide B.
  """
  _check(batch, alpha, num_devices, f"there are {num_devices} devices")
  size = len(batch["image"]) // num_devices
  weights = _weights(key, alpha, (num_devices, 1))
  return _blended(batch, size, weights, lambda x: jnp.roll(x, -1, axis=1))


def _check(batch: Batch, alpha: float, unit: int, reason: str) -> None:
  size = len(batch["image"])
  if alpha <= 0:
    raise ValueError(
      f"mixup={alpha}: must be positive. Leave mixup out instead."
    )
  if size % unit:
    raise ValueError(
      f"batch_size={size}: must be a multiple of {unit}, as {reason}. Change "
      "it, or leave mixup out."
    )


def _weights(key: jax.Array, alpha: float, shape: tuple[int, ...]) -> jax.Array:
  weights = jax.random.beta(key, alpha, alpha, shape)
  return jnp.maximum(weights, 1 - weights)


def _blended(
  batch: Batch,
  size: int,
  weights: jax.Array,
  partners: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
  """Blends consecutive parts of `size` images: (parts, size, ...)."""

  def blend(x: jax.Array) -> jax.Array:
    parts = x.reshape(-1, size, *x.shape[1:])
    w = weights.reshape(weights.shape + (1,) * (parts.ndim - weights.ndim))
    mixed = w * parts + (1 - w) * partners(parts)
    return mixed.reshape(x.shape).astype(x.dtype)

  return {
    **batch,
    "image": blend(batch["image"]),
    "label": blend(batch["label"]),
  }
