"""`glyph_scenes/N`: one to four Han characters on clutter, with several labels.

A stand-in for JFT: N classes with frequencies proportional to 1 / rank, one to
four labels per image, and content that is unevenly distributed over the image.
Characters, designs and their split are those of `glyphs/N`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from vmoe_study.data.datasets import as_png, fonts, unregistered
from vmoe_study.data.datasets.glyphs import draw, han

SIZE = 56  # Pixels.
EM = 26  # Pixels per em.
IMAGES = {"train": 100_000, "val": 10_000, "test": 10_000}
MAX_GLYPHS = 4
SCALE = (0.7, 1.1)
MAX_TILT = 20.0  # Degrees.
MAX_SHEAR = 0.2
MIN_CONTRAST = 80.0  # Levels between the means of glyph and background.
NUM_STROKES = 6
NUM_TRIES = 20  # Of finding room for a glyph.
SEED = 0

Box = tuple[int, int, int, int]  # y0, x0, y1, x1 in pixels.


class Scene:
  """An image in the making.

  Attributes:
    image: float32 (SIZE, SIZE, 3).
    boxes: boxes of the glyphs so far.
  """

  def __init__(self, rng: np.random.Generator):
    """Starts with the background: colour clouds, noise and strokes."""
    self._rng = rng
    self.image = np.full((SIZE, SIZE, 3), rng.uniform(40, 215, 3), np.float32)
    for cells in (2, 7):
      cloud = rng.standard_normal((cells, cells, 3), np.float32) * 18
      self.image += cv2.resize(cloud, (SIZE, SIZE))
    self.image += rng.standard_normal((SIZE, SIZE, 1), np.float32) * 6
    for _ in range(NUM_STROKES):
      start, end = rng.integers(0, SIZE, (2, 2)).tolist()
      colour = rng.uniform(0, 255, 3).tolist()
      cv2.line(self.image, start, end, colour, 1, cv2.LINE_AA)
    self.boxes: list[Box] = []

  def add(self, glyph: np.ndarray) -> bool:
    """Puts a random affine copy of a uint8 (H, W, 1) glyph on the image.

    Returns:
      Whether a few tries found room for it next to the others.
    """
    alpha = self._transform(glyph)
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    alpha = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    for _ in range(NUM_TRIES):
      y0, x0 = self._rng.integers(0, SIZE + 1 - np.array(alpha.shape)).tolist()
      box = y0, x0, y0 + alpha.shape[0], x0 + alpha.shape[1]
      if not any(_overlap(box, other) for other in self.boxes):
        self._paint(alpha, box)
        return True
    return False

  def _paint(self, alpha: np.ndarray, box: Box) -> None:
    y0, x0, y1, x1 = box
    patch = self.image[y0:y1, x0:x1]
    colour = self._colour(patch.mean())
    patch += (alpha[..., None] / 255.0) * (colour - patch)
    self.boxes.append(box)

  def _transform(self, glyph: np.ndarray) -> np.ndarray:
    scale = self._rng.uniform(*SCALE)
    tilt = np.deg2rad(self._rng.uniform(-MAX_TILT, MAX_TILT))
    shear = self._rng.uniform(-MAX_SHEAR, MAX_SHEAR)
    turn = np.array(
      [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    )
    matrix = scale * turn @ np.array([[1, shear], [0, 1]])
    centre = np.array(glyph.shape[:2]) / 2
    offset = SIZE / 2 - matrix @ centre
    affine = np.column_stack([matrix, offset])
    return cv2.warpAffine(glyph, affine, (SIZE, SIZE))

  def _colour(self, background: float) -> np.ndarray:
    """A random colour whose mean differs clearly from the background's."""
    while True:
      colour = self._rng.uniform(0, 255, 3)
      if abs(colour.mean() - background) >= MIN_CONTRAST:
        return colour


def _overlap(a: Box, b: Box) -> bool:
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _relative(box: Box) -> tfds.features.BBox:
  return tfds.features.BBox(*(side / SIZE for side in box))


def sample_labels(rng: np.random.Generator, classes: int) -> list[int]:
  """Draws one to four labels, with P(class c) close to 1 / (c + 1)."""
  count = rng.integers(1, MAX_GLYPHS + 1)
  ranks = (classes + 1.0) ** rng.random(count)
  return [int(rank) - 1 for rank in ranks]


with unregistered():

  class GlyphScenes(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `glyph_scenes/N`."""

    name = "glyph_scenes"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Install the Debian packages of the fonts."
    default_manual_dir = fonts.FONTS

    @classmethod
    def config_from_name(cls, name: str) -> tfds.core.BuilderConfig:
      """The config "N", the number of classes.

      Raises:
        ValueError: N is not from 2 to the number of characters.
      """
      largest = len(han())
      if not name.isdecimal() or not 2 <= int(name) <= largest:
        raise ValueError(
          f"data set 'glyph_scenes/{name}': must be glyph_scenes/N with N from "
          f"2 to {largest}. Use glyph_scenes/500, for example."
        )
      return tfds.core.BuilderConfig(name=name, description=f"{name} classes")

    def _info(self) -> tfds.core.DatasetInfo:
      names = han(int(self.builder_config.name))
      return self.dataset_info_from_configs(
        description="Han characters on clutter, with several labels.",
        features=tfds.features.FeaturesDict(
          {
            "image": tfds.features.Image(shape=(SIZE, SIZE, 3)),
            "label": tfds.features.Sequence(
              tfds.features.ClassLabel(names=names)
            ),
            "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
          }
        ),
        disable_shuffling=True,
      )

    def check_manual_dir(self, folder: Path) -> None:
      """Raises MissingDataError if a font is missing; names its package."""
      fonts.check_installed(folder, fonts.HAN)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      folder = Path(dl_manager.manual_dir)
      return {split: self._generate_examples(folder, split) for split in IMAGES}

    def _generate_examples(
      self, folder: Path, split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
      characters = han(int(self.builder_config.name))
      designs = [design.load(folder, EM) for design in fonts.HAN[split]]
      for key in range(IMAGES[split]):
        rng = np.random.default_rng([SEED, list(IMAGES).index(split), key])
        scene, labels = Scene(rng), []
        for label in sample_labels(rng, len(characters)):
          font = designs[rng.integers(len(designs))]
          if scene.add(draw(characters[label], font)):
            labels.append(label)
        yield (
          key,
          {
            "image": as_png(np.clip(scene.image, 0, 255).astype(np.uint8)),
            "label": labels,
            "boxes": [_relative(box) for box in scene.boxes],
          },
        )
