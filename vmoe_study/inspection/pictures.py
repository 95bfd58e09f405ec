"""Pictures of routing: patches of experts on images, and routing tensors."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy import ndarray as Array

from vmoe_study.inspection.charts import expert_ticks
from vmoe_study.inspection.measure import ShownRouting, TokenRouting

FAINT = 0.15  # Contrast of a patch that an expert does not take,
GREY = 0.6  # against this grey: black patches and white ones stand out.
OUTLINE = "tab:orange"  # Of a patch that an expert takes.
OPACITY = 0.55  # Of an expert's colour on its patch.
MOST_NUMBERED = 8  # Patches along a side that leave room for numbers.
TOP_EXPERTS = 8


@dataclasses.dataclass(frozen=True)
class Gallery:
  """Images, as the model sees them, to be shown with their routing.

  Attributes:
    images: whole groups; the first `count` are shown.
    titles: of each image.
    count: how many to show.
    patch_size: in pixels.
    layers: by name, from the first to the last.
  """

  images: Float[Array, "B H W channels"]
  titles: Sequence[str]
  count: int
  patch_size: int
  layers: Mapping[str, ShownRouting]

  @property
  def grid(self) -> tuple[int, int]:
    """Patches along height and width."""
    height, width = self.images.shape[1:3]
    return height // self.patch_size, width // self.patch_size

  def picture(self, number: int) -> Float[Array, "H W 3"]:
    """An image in [0, 1]."""
    image = self.images[number]
    image = (image - image.min()) / max(np.ptp(image), 1e-6)
    return np.broadcast_to(image, (*image.shape[:2], 3))

  def on_grid(self, tokens: Float[Array, "B L E"], number: int):
    """An image's (height, width, E), without the class token in front."""
    height, width = self.grid
    return tokens[number, -height * width :].reshape(height, width, -1)


def patches_picture(gallery: Gallery) -> Figure:
  """Images x layers: each patch in the colour of its expert.

  Of several experts that process a patch, that with the largest combine weight.
  A patch that no expert processes has no colour and no number.
  """
  layers = gallery.layers
  num_experts = next(iter(layers.values())).tokens.sent.shape[2]
  colors = _colors(num_experts)
  figure, axes = _mosaic(gallery, ["image", *layers])
  for number in range(gallery.count):
    for column, layer in enumerate(layers.values(), start=1):
      sent = gallery.on_grid(layer.tokens.sent, number)
      returned = gallery.on_grid(layer.tokens.returned, number)
      experts = np.where(sent > 0, returned, -1).argmax(axis=2)
      experts = np.where(sent.max(axis=2) > 0, experts, -1)
      _color_patches(axes[number, column], gallery, number, experts, colors)
  scale = Normalize(-0.5, num_experts - 0.5)
  figure.colorbar(
    ScalarMappable(scale, ListedColormap(colors)),
    ax=list(axes.flat),
    label="expert",
    ticks=expert_ticks(num_experts),
    shrink=min(1.0, 3 / gallery.count + 0.3),
  )
  return figure


def _colors(num_experts: int) -> Float[Array, "E 3"]:
  named = np.asarray(colormaps["tab20"].colors)
  named = np.delete(named, [14, 15], axis=0)  # Greys: images may be grey.
  if num_experts <= len(named):
    return named[:num_experts]
  return colormaps["turbo"](np.linspace(0, 1, num_experts))[:, :3]


def _color_patches(
  axes: Axes, gallery: Gallery, number: int, experts: Array, colors: Array
) -> None:
  size = gallery.patch_size
  taken = np.kron(experts >= 0, np.ones((size, size)))[..., None]
  color = np.kron(colors[experts], np.ones((size, size, 1)))
  opacity = OPACITY * taken
  picture = gallery.picture(number) * (1 - opacity) + color * opacity
  axes.imshow(picture, vmin=0, vmax=1)
  if max(gallery.grid) > MOST_NUMBERED:
    return
  for (row, column), expert in np.ndenumerate(experts):
    if expert >= 0:
      axes.text(
        (column + 0.5) * size - 0.5,
        (row + 0.5) * size - 0.5,
        str(expert),
        ha="center",
        va="center",
        fontsize=7,
        color="white",
        path_effects=[withStroke(linewidth=1.5, foreground="black")],
      )


def experts_picture(gallery: Gallery, layer: str) -> Figure:
  """Images x experts of a layer: the patches of each stand out of grey.

  Shows the experts with the largest combine weight on these images; the
  contrast of a patch is its combine weight over the largest in the picture.
  What an expert takes is outlined, unless all take everything, as in Soft MoE.
  """
  tokens = gallery.layers[layer].tokens
  experts = top_experts(tokens, gallery.count)
  columns = ["image", *(f"expert {expert}" for expert in experts)]
  figure, axes = _mosaic(gallery, columns)
  largest = max(tokens.returned[: gallery.count].max(), 1e-9)
  size = gallery.patch_size
  outlined = not np.all(tokens.sent > 0)
  for number in range(gallery.count):
    share = gallery.on_grid(tokens.returned, number) / largest
    contrast = FAINT + (1 - FAINT) * np.kron(share, np.ones((size, size, 1)))
    picture = gallery.picture(number)
    taken = gallery.on_grid(tokens.sent, number) > 0
    for column, expert in enumerate(experts, start=1):
      shown = GREY + (picture - GREY) * contrast[..., expert, None]
      shown = shown.clip(0, 1)  # Rounding leaves some values just outside.
      axes[number, column].imshow(shown, vmin=0, vmax=1)
      if outlined:
        _outline(axes[number, column], taken[..., expert], size)
  return figure


def _outline(axes: Axes, taken: Bool[Array, "height width"], size: int) -> None:
  corners = size * np.argwhere(taken)[:, ::-1] - 0.5
  patches = [Rectangle(tuple(corner), size, size) for corner in corners]
  style = {"facecolor": "none", "edgecolor": OUTLINE, "linewidth": 1.2}
  axes.add_collection(PatchCollection(patches, **style))


def top_experts(tokens: TokenRouting, count: int) -> list[int]:
  """Experts by their combine weight on the first `count` images."""
  weight = tokens.returned[:count].sum(axis=(0, 1))
  return np.argsort(-weight, kind="stable")[:TOP_EXPERTS].tolist()


def _mosaic(gallery: Gallery, columns: Sequence[str]) -> tuple[Figure, Array]:
  """A row per image, which stands in the first column."""
  rows, width = gallery.count, len(columns)
  size = max(1.3 * width + 1.2, 4), 1.35 * rows + 0.5
  figure = Figure(figsize=size, layout="constrained")
  options = {"xticks": [], "yticks": []}
  axes = figure.subplots(rows, width, squeeze=False, subplot_kw=options)
  for column, title in enumerate(columns):
    axes[0, column].set_title(title, fontsize=8)
  for number in range(rows):
    axes[number, 0].imshow(gallery.picture(number), vmin=0, vmax=1)
    axes[number, 0].set_ylabel(gallery.titles[number], fontsize=7)
  return figure, axes


def tensors_picture(layer: ShownRouting, tokens_per_image: int) -> Figure:
  """Dispatch and Combine of one group: tokens x slots."""
  figure = Figure(figsize=(11, 5), layout="constrained")
  axes = figure.subplots(1, 2, sharey=True)
  named = {"Dispatch": layer.dispatch, "Combine": layer.combine}
  for part, (name, tensor) in zip(axes, named.items(), strict=True):
    num_tokens, num_experts, capacity = tensor.shape
    image = part.imshow(
      tensor.reshape(num_tokens, -1),
      aspect="auto",
      interpolation="nearest",
      cmap="magma_r",
      vmin=0,
    )
    figure.colorbar(image, ax=part, label="weight")
    part.set(title=name, xlabel=f"expert ({capacity} slots each)")
    starts = capacity * np.arange(num_experts)
    ticks = expert_ticks(num_experts)
    part.set_xticks(starts[ticks] + capacity / 2 - 0.5, ticks)
    part.vlines(starts[1:] - 0.5, -0.5, num_tokens - 0.5, "0.8", linewidth=0.5)
    images = tokens_per_image * np.arange(1, num_tokens // tokens_per_image)
    part.hlines(
      images - 0.5, -0.5, num_experts * capacity - 0.5, "0.6", linewidth=0.5
    )
  axes[0].set_ylabel("token of the group, image after image")
  return figure
