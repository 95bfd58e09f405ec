"""Whether routers spend slots on content or on background.

A patch has content if its pixels vary: if their standard deviation is at least
`CONTRAST` times that of the whole image.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vmoe_study.inspection.measure import TokenRouting

CONTRAST = 0.25


class PatchRouting(NamedTuple):
  """Patches of each image in one layer: column 0 background, column 1 content.

  Attributes:
    patches: number of patches.
    dispatched: dispatch weight of the patches, summed over experts and slots.
    unprocessed: number of patches that no expert processes.
  """

  patches: Float[Array, "B 2"]
  dispatched: Float[Array, "B 2"]
  unprocessed: Float[Array, "B 2"]


@dataclasses.dataclass(frozen=True)
class ContentStatistics:
  """Routing of patches with and without content; NaN where there is none.

  Attributes:
    patches: share of the patches that have content.
    dispatched: share of the patches' dispatch weight that goes to content. A
      router that ignores content has `patches`.
    unprocessed_content: share of the patches with content that no expert
      processes.
    unprocessed_background: the same without content.
  """

  patches: float
  dispatched: float
  unprocessed_content: float
  unprocessed_background: float


def has_content(
  images: Float[Array, "B H W channels"], patch_size: int
) -> Bool[Array, "B P"]:
  """Whether each patch has content; patches in the order of the tokens."""
  B, H, W, channels = images.shape
  rows, columns = H // patch_size, W // patch_size
  grid = images.reshape(B, rows, patch_size, columns, patch_size, channels)
  deviation_BP = grid.std(axis=(2, 4)).mean(axis=-1).reshape(B, -1)
  deviation_B1 = images.std(axis=(1, 2)).mean(axis=-1, keepdims=True)
  return (deviation_BP > 0) & (deviation_BP >= CONTRAST * deviation_B1)


def patch_routing(
  tokens: TokenRouting,
  images: Float[Array, "B H W channels"],
  patch_size: int,
) -> PatchRouting:
  """Sums over the patches of each image; a class token does not count."""
  content = has_content(images, patch_size)
  kinds_BP2 = jnp.stack([~content, content], axis=-1).astype(jnp.float32)
  sent_BPE = tokens.dispatched[:, -content.shape[1] :]
  unprocessed_BP = ~jnp.any(sent_BPE > 0, axis=2)
  return PatchRouting(
    kinds_BP2.sum(axis=1),
    jnp.einsum("bpe,bpk->bk", sent_BPE, kinds_BP2),
    jnp.einsum("bp,bpk->bk", unprocessed_BP.astype(jnp.float32), kinds_BP2),
  )


def content_statistics(routing: PatchRouting) -> ContentStatistics:
  """Computes the statistics of one layer, from NumPy arrays."""
  patches, dispatched, unprocessed = (x.sum(axis=0) for x in routing)
  return ContentStatistics(
    patches=_ratio(patches[1], patches.sum()),
    dispatched=_ratio(dispatched[1], dispatched.sum()),
    unprocessed_content=_ratio(unprocessed[1], patches[1]),
    unprocessed_background=_ratio(unprocessed[0], patches[0]),
  )


def _ratio(part: float, whole: float) -> float:
  return float(part / whole) if whole else float("nan")
