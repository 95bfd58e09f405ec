"""TPU chips, slices and GPUs: published figures, and names like "v5e:4x4"."""

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
    network_bandwidth: the chip's share of the network between slices, in
      bytes/s; 0 if it is not published.
    torus_multiple: an axis of a slice wraps around (its last chip is linked to
      its first) if its length is a multiple of this; in three dimensions only
      if that holds for all axes.
    slices: published slice shapes, in chips; for three dimensions only the most
      common ones.
    source: where the figures are published.
    options: options with which libtpu is asked for a slice.
    devices: JAX devices per chip, which share the chip's resources.
  """

  flops: float
  hbm_bytes: float
  hbm_bandwidth: float
  ici_bandwidth: float
  network_bandwidth: float
  torus_multiple: int
  slices: tuple[str, ...]
  source: str
  options: tuple[tuple[str, str], ...] = ()
  devices: int = 1


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DEEP = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")

CHIPS = {
  "v4": Chip(
    flops=275e12,
    hbm_bytes=32 * GIB,
    hbm_bandwidth=1200e9,
    ici_bandwidth=300e9,
    network_bandwidth=0.0,
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
    network_bandwidth=25e9 / 8,
    torus_multiple=16,
    slices=_FLAT,
    source=f"{_DOCS}v5e",
  ),
  "v5p": Chip(
    flops=459e12,
    hbm_bytes=95 * GIB,
    hbm_bandwidth=2765e9,
    ici_bandwidth=600e9,
    network_bandwidth=50e9 / 8,
    torus_multiple=4,
    slices=_DEEP,
    source=f"{_DOCS}v5p",
  ),
  "v6e": Chip(
    flops=918e12,
    hbm_bytes=32 * GIB,
    hbm_bandwidth=1640e9,
    ici_bandwidth=400e9,
    network_bandwidth=100e9 / 8,
    torus_multiple=16,
    slices=_FLAT,
    source=f"{_DOCS}v6e",
  ),
  "tpu7x": Chip(
    flops=2307e12,
    hbm_bytes=192 * GIB,
    hbm_bandwidth=7380e9,
    ici_bandwidth=600e9,
    network_bandwidth=100e9 / 8,
    torus_multiple=4,
    slices=_DEEP,
    source=f"{_DOCS}tpu7x",
    devices=2,
  ),
}

_NVIDIA = "https://www.nvidia.com/en-us/data-centre/"


def _gpu(flops, hbm_bytes, hbm_bandwidth, nvlink, page):
  """A GPU in nodes of 8, each GPU with a network adapter of 400 Gbit/s."""
  source = _NVIDIA + page
  return Chip(flops, hbm_bytes, hbm_bandwidth, nvlink, 50e9, 0, (), source)


# Dense bfloat16 FLOP/s; NVLink in one direction, half of the published figure.
GPUS = {
  "h100": _gpu(989e12, 80e9, 3350e9, 450e9, "h100/"),
  "h200": _gpu(989e12, 141e9, 4800e9, 450e9, "h200/"),
  "b200": _gpu(2250e12, 180e9, 8000e9, 900e9, "dgx-b200/"),
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

  @property
  def wraps(self) -> tuple[bool, ...]:
    """Whether the ends of each axis are linked."""
    whole = [n % self.chip.torus_multiple == 0 for n in self.shape]
    return tuple(whole) if len(whole) == 2 else (all(whole),) * len(whole)


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


def parse_gpus(name: str) -> tuple[Chip, int]:
  """Parses a name such as "h100:8": the kind of GPU, and how many.

  Raises:
    ValueError: for an unknown GPU, or no number of them.
  """
  kind, _, count = name.partition(":")
  if kind not in GPUS or not re.fullmatch(r"[1-9]\d*", count):
    raise ValueError(
      f"devices={name!r}: must be one of {', '.join(GPUS)} and a number. Write "
      "it as h100:8."
    )
  return GPUS[kind], int(count)
