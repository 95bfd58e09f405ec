"""Pictures of the patches of each expert, and of the routing tensors."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy import ndarray as Array

from vmoe_study.drawing.labels import name_label
from vmoe_study.inspection.charts import expert_ticks
from vmoe_study.inspection.gallery import Gallery
from vmoe_study.inspection.measure import LayerRouting, TokenRouting

# In pictures of single experts, patches fade to this grey, against which both
# black and white patches stand out. Patches without combine weight keep the
# minimum contrast.
GREY, MIN_CONTRAST = 0.6, 0.15
OUTLINE = "tab:orange"  # Of the patches that an expert takes.
OPACITY = 0.55  # Of an expert's colour on its patches.
MAX_NUMBERED = 8  # With more patches along a side they are not numbered.
TOP_EXPERTS = 8
TITLE_WIDTH = 20  # Letters; an image is 1.3 inches wide.


def patches_picture(gallery: Gallery) -> Figure:
  """Images x layers: each patch in the colour of its expert.

  If several experts process a patch, the one with the largest combine weight is
  shown. A patch that no expert processes has no colour and no number.
  """
  layers = gallery.layers
  num_experts = next(iter(layers.values())).tokens.dispatched.shape[2]
  colors = _colors(num_experts)
  figure, axes = _mosaic(gallery, ["image", *layers])
  for number in range(gallery.count):
    for column, layer in enumerate(layers.values(), start=1):
      experts = _patch_experts(gallery, layer, number)
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


def comparison_picture(galleries: Sequence[tuple[str, Gallery]]) -> Figure:
  """Images and runs x images: patches in the colours of each run's experts.

  Args:
    galleries: name and gallery of each run, all with the same images.
  """
  count = min(gallery.count for _, gallery in galleries)
  rows = 1 + len(galleries)
  figure = Figure(
    figsize=(1.25 * count + 1.9, 1.3 * rows), layout="constrained"
  )
  options = {"xticks": [], "yticks": []}
  axes = figure.subplots(rows, count, squeeze=False, subplot_kw=options)
  for number in range(count):
    picture = galleries[0][1].picture(number)
    axes[0, number].imshow(picture, vmin=0, vmax=1)
    title = name_label(galleries[0][1].titles[number], TITLE_WIDTH)
    axes[0, number].set_title(title, fontsize=8)
  for row, (name, gallery) in zip(axes[1:], galleries, strict=True):
    layer = list(gallery.layers.values())[-1]
    colors = _colors(layer.tokens.dispatched.shape[2])
    for number, axis in enumerate(row):
      experts = _patch_experts(gallery, layer, number)
      _color_patches(axis, gallery, number, experts, colors)
    row[0].set_ylabel(
      name_label(name.replace("_", " "), 40),
      fontsize=8,
      rotation=0,
      ha="right",
      va="center",
      wrap=True,
    )
  return figure


def _patch_experts(
  gallery: Gallery, layer: LayerRouting, number: int
) -> Int[Array, "height width"]:
  """The expert of each patch of an image; -1 for none."""
  dispatched = gallery.on_grid(layer.tokens.dispatched, number)
  combined = gallery.on_grid(layer.tokens.combined, number)
  experts = np.where(dispatched > 0, combined, -1).argmax(axis=2)
  return np.where(dispatched.max(axis=2) > 0, experts, -1)


def _colors(num_experts: int) -> Float[Array, "E 3"]:
  named = np.asarray(colormaps["tab20"].colors)
  # Without the two greys, which are hard to see on grey images.
  named = np.delete(named, [14, 15], axis=0)
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
  if max(gallery.grid) > MAX_NUMBERED:
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
  """Images x experts of a layer; the patches of an expert stand out from grey.

  Shows the experts with the largest combine weight on these images. The
  contrast of a patch is its combine weight, relative to the largest one in the
  picture. The patches that an expert takes are outlined, unless every expert
  takes all of them, as in Soft MoE.
  """
  tokens = gallery.layers[layer].tokens
  experts = top_experts(tokens, gallery.count)
  columns = ["image", *(f"expert {expert}" for expert in experts)]
  figure, axes = _mosaic(gallery, columns)
  largest = max(tokens.combined[: gallery.count].max(), 1e-9)
  size = gallery.patch_size
  outlined = not np.all(tokens.dispatched > 0)
  for number in range(gallery.count):
    share = gallery.on_grid(tokens.combined, number) / largest
    share = np.kron(share, np.ones((size, size, 1)))
    contrast = MIN_CONTRAST + (1 - MIN_CONTRAST) * share
    picture = gallery.picture(number)
    taken = gallery.on_grid(tokens.dispatched, number) > 0
    for column, expert in enumerate(experts, start=1):
      shown = GREY + (picture - GREY) * contrast[..., expert, None]
      shown = shown.clip(0, 1)  # Rounding puts some values just outside.
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
  """The experts with the largest combine weight on the first images."""
  weight = tokens.combined[:count].sum(axis=(0, 1))
  return np.argsort(-weight, kind="stable")[:TOP_EXPERTS].tolist()


def _mosaic(gallery: Gallery, columns: Sequence[str]) -> tuple[Figure, Array]:
  """A grid with one row per image, which is shown in the first column."""
  rows, width = gallery.count, len(columns)
  size = max(1.3 * width + 1.2, 4), 1.35 * rows + 0.5
  figure = Figure(figsize=size, layout="constrained")
  options = {"xticks": [], "yticks": []}
  axes = figure.subplots(rows, width, squeeze=False, subplot_kw=options)
  for column, title in enumerate(columns):
    axes[0, column].set_title(title, fontsize=8)
  for number in range(rows):
    axes[number, 0].imshow(gallery.picture(number), vmin=0, vmax=1)
    title = name_label(gallery.titles[number], TITLE_WIDTH)
    axes[number, 0].set_ylabel(title, fontsize=7)
  return figure, axes


def tensors_picture(layer: LayerRouting, tokens_per_image: int) -> Figure:
  """The routing tensors of one group, tokens x slots."""
  figure = Figure(figsize=(11, 5), layout="constrained")
  left, right = figure.subplots(1, 2, sharey=True)
  _draw_tensor(left, "Dispatch", layer.dispatch, tokens_per_image)
  _draw_tensor(right, "Combine", layer.combine, tokens_per_image)
  left.set_ylabel("token of the group, image by image")
  return figure


def _draw_tensor(
  axes: Axes, name: str, tensor: Float[Array, "S E C"], tokens_per_image: int
) -> None:
  """One routing tensor, with lines between images and between experts."""
  num_tokens, num_experts, capacity = tensor.shape
  image = axes.imshow(
    tensor.reshape(num_tokens, -1),
    aspect="auto",
    interpolation="nearest",
    cmap="magma_r",
    vmin=0,
  )
  axes.figure.colorbar(image, ax=axes, label="weight")
  axes.set(title=name, xlabel=f"expert ({capacity} slots each)")
  starts = capacity * np.arange(num_experts)
  ticks = expert_ticks(num_experts)
  axes.set_xticks(starts[ticks] + capacity / 2 - 0.5, ticks)
  axes.vlines(starts[1:] - 0.5, -0.5, num_tokens - 0.5, "0.8", linewidth=0.5)
  images = tokens_per_image * np.arange(1, num_tokens // tokens_per_image)
  axes.hlines(
    images - 0.5, -0.5, num_experts * capacity - 0.5, "0.6", linewidth=0.5
  )
