"""`emoji`: 3,655 colour emoji in 99 subgroups, for few-shot evaluation.

Images come from the Noto colour font and subgroups from Unicode's list, that
is, from the Debian packages fonts-noto-color-emoji and unicode-data.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from vmoe_study.data.builders import MissingDataError
from vmoe_study.data.dataset_specs import DATASETS
from vmoe_study.data.datasets import as_png, unregistered

SHARE_DIR = Path("/usr/share")
FONT, LIST = DATASETS["emoji"].manual
INSTRUCTIONS = (
  "They come with `apt-get install fonts-noto-color-emoji unicode-data`."
)
NUM_CLASSES = 99
TEST_EVERY = 5
VARIATION_SELECTOR = 0xFE0F
LIGATURE, EXTENSION = 4, 7  # Lookup types of a font's substitution table.


def read_list(path: Path) -> list[tuple[str, tuple[int, ...]]]:
  """Returns (subgroup, code points) of every fully qualified emoji."""
  emoji, subgroup = [], ""
  for line in path.read_text(encoding="utf-8").splitlines():
    if line.startswith("# subgroup:"):
      subgroup = line.partition(":")[2].strip()
    elif match := re.match(r"([0-9A-F ]+); fully-qualified", line):
      points = (int(point, 16) for point in match[1].split())
      kept = tuple(p for p in points if p != VARIATION_SELECTOR)
      emoji.append((subgroup, kept))
  return emoji


class EmojiFont:
  """The bitmaps of a colour font, by code points."""

  def __init__(self, path: Path):
    """Reads the font; raises MissingDataError if fontTools is missing."""
    try:
      from fontTools.ttLib import TTFont
    except ImportError as error:
      raise MissingDataError(
        f"data set 'emoji': fontTools is not installed ({error}). Install the "
        "extra `demo` of this package."
      ) from error

    font = TTFont(path)
    self._glyphs = font.getBestCmap()
    self._bitmaps = font["CBDT"].strikeData[0]
    self._ligatures: dict[tuple[str, ...], str] = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
      for table in lookup.SubTable:
        table = table.ExtSubTable if table.LookupType == EXTENSION else table
        if table.LookupType == LIGATURE:
          self._add_ligatures(table)

  def _add_ligatures(self, table: Any) -> None:
    for first, ligatures in table.ligatures.items():
      for ligature in ligatures:
        self._ligatures[first, *ligature.Component] = ligature.LigGlyph

  def image(self, points: tuple[int, ...]) -> np.ndarray:
    """Returns uint8 (128, 136, 3): the emoji on a white background."""
    glyphs = tuple(self._glyphs[point] for point in points)
    glyph = glyphs[0] if len(glyphs) == 1 else self._ligatures[glyphs]
    data = np.frombuffer(self._bitmaps[glyph].imageData, np.uint8)
    rgba = cv2.cvtColor(
      cv2.imdecode(data, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA
    )
    opacity = rgba[..., 3:] / 255
    blended = rgba[..., :3] * opacity + 255 * (1 - opacity)
    return np.rint(blended).astype(np.uint8)


with unregistered():

  class Emoji(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `emoji`; every fifth of each subgroup is a test image."""

    name = "emoji"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = INSTRUCTIONS
    default_manual_dir = SHARE_DIR

    def _info(self) -> tfds.core.DatasetInfo:
      return self.dataset_info_from_configs(
        description="Noto colour emoji by Unicode subgroup.",
        features=tfds.features.FeaturesDict(
          {
            "image": tfds.features.Image(shape=(128, 136, 3)),
            "label": tfds.features.ClassLabel(num_classes=NUM_CLASSES),
          }
        ),
        supervised_keys=("image", "label"),
      )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      folder = Path(dl_manager.manual_dir)
      emoji = read_list(folder / LIST)
      names = list(dict.fromkeys(subgroup for subgroup, _ in emoji))
      self.info.features["label"].names = names
      font = EmojiFont(folder / FONT)
      seen: Counter[str] = Counter()
      rows: dict[str, list[Any]] = {"train": [], "test": []}
      for subgroup, points in emoji:
        seen[subgroup] += 1
        split = "train" if seen[subgroup] % TEST_EVERY else "test"
        rows[split].append((subgroup, points))
      return {
        split: self._generate_examples(font, rows[split]) for split in rows
      }

    def _generate_examples(
      self, font: EmojiFont, rows: list[Any]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
      for key, (subgroup, points) in enumerate(rows):
        image = as_png(font.image(points))
        yield key, {"image": image, "label": subgroup}
