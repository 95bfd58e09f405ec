"""Mixup (arXiv:1710.09412) on the device, within each shard of the batch."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def mixup(
  batch: Mapping[str, jax.Array],
  key: jax.Array,
  alpha: float,
  num_shards: int = 1,
) -> dict[str, jax.Array]:
  """Blends every example with its neighbour: x <- w x + (1 - w) x'.

  The neighbour is the previous example of the same shard (the first one's is
  the last), so that nothing crosses devices; the input's order is random
  already. One w for the whole batch, w ~ Beta(alpha, alpha), folded to [1/2, 1]
  so that an example stays the greater part of itself. Images and labels share
  it, hence the label mass of every shard is conserved.

  Args:
    batch: "image" (B, H, W, C) and "label" (B, classes).
    key: a PRNG key.
    alpha: the Beta distribution's parameter; greater blends more.
    num_shards: into how many equal, contiguous parts devices share the batch.

  Returns:
    The blended "image" and "label"; other entries as they are.

  Raises:
    ValueError: alpha is not positive, or the shards are not equal.
  """
  if alpha <= 0:
    raise ValueError(
      f"mixup's alpha is {alpha}; it must be positive: leave mixup out instead"
    )
  size = batch["image"].shape[0]
  if size % num_shards:
    raise ValueError(
      f"mixup over {num_shards} shards of a batch of {size}; the batch must be"
      " a multiple of the shards"
    )
  weight = jax.random.beta(key, alpha, alpha)
  weight = jnp.maximum(weight, 1 - weight)

  def blend(x: jax.Array) -> jax.Array:
    shards = x.reshape(num_shards, size // num_shards, *x.shape[1:])
    mixed = weight * shards + (1 - weight) * jnp.roll(shards, 1, axis=1)
    return mixed.reshape(x.shape).astype(x.dtype)

  return {
    **batch,
    "image": blend(batch["image"]),
    "label": blend(batch["label"]),
  }
