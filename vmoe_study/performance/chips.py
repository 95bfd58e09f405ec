"""TPU chips and slices: published figures, and names such as "v5e:4x4"."""

import dataclasses
import re

GIB = 2**30
_DOCS = "https://cloud.google.com/tpu/docs/"


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of one chip.

  Attributes:
    flops: peak bfloat16 FLOP/s.
    hbm_bytes: HBM capacity in bytes; XLA reserves a part of it.
    hbm_bandwidth: bytes/s.
    ici_bandwidth: outgoing bytes/s over all links of the chip: half of the
      bidirectional figure in newer documents.
    torus_multiple: an axis of a slice wraps around (its last chip is linked to
      its first) if its length is a multiple of this.
    slices: published slice shapes, in chips; for three dimensions only the most
      common ones.
    source: where the figures are published.
    options: options with which libtpu describes a slice as one device per chip.
  """

  flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  ici_bandwidth: float
  torus_multiple: int
  slices: tuple[str, ...]
  source: str
  options: tuple[tuple[str, str], ...] = ()


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")

CHIPS = {
  "v4": Chip(
    flops=275e12,
    hbm_bytes=32 * GIB,
    hbm_bandwidth=1200e9,
    ici_bandwidth=300e9,
    torus_multiple=4,
    slices=_DEEP,
    source=f"{_DOCS}v4; six links of 50 GB/s: arXiv:2304.01433",
    options=(("chip_config_name", "megacore"),),
  ),
  "v5e": Chip(
    flops=197e12,
    hbm_bytes=16 * GIB,
    hbm_bandwidth=819e9,
    ici_bandwidth=200e9,
    torus_multiple=16,
    slices=_FLAT,
    source=f"{_DOCS}v5e",
  ),
  "v5p": Chip(
    flops=459e12,
    hbm_bytes=95 * GIB,
    hbm_bandwidth=2765e9,
    ici_bandwidth=600e9,
    torus_multiple=4,
    slices=_DEEP,
    source=f"{_DOCS}v5p",
  ),
  "v6e": Chip(
    flops=918e12,
    hbm_bytes=32 * GIB,
    hbm_bandwidth=1640e9,
    ici_bandwidth=400e9,
    torus_multiple=16,
    slices=_FLAT,
    source=f"{_DOCS}v6e",
  ),
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """A block of connected chips.

  Attributes:
    name: such as "v5e:4x4".
    chip: the kind of chip.
    shape: chips along each axis.
  """

  name: str
  chip: Chip
  shape: tuple[int, ...]


def parse_slice(name: str) -> Slice:
  """Parses a name such as "v5e:4x4": kind of chip, and chips along each axis.

  Raises:
    ValueError: for an unknown chip, or a wrong number of dimensions.

  >>> parse_slice("v5e:4x4").shape
  (4, 4)
  """
  kind, _, shape = name.partition(":")
  if kind not in CHIPS:
    raise ValueError(
      f"topology={name!r}: unknown chip {kind!r}. Known chips: "
      f"{', '.join(CHIPS)}; name a slice as 'v5e:4x4' or 'v5p:4x4x4'."
    )
  chip = CHIPS[kind]
  dimensions = chip.slices[0].count("x") + 1
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)" + f"{{{dimensions - 1}}}", shape):
    raise ValueError(
      f"topology={name!r}: slices of {kind} have {dimensions} dimensions. "
      f"Known slices: {', '.join(f'{kind}:{s}' for s in chip.slices)}."
    )
  return Slice(name, chip, tuple(map(int, shape.split("x"))))
