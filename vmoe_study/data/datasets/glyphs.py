"""`glyphs`: characters of many classes, tested in fonts not seen in training.

  glyphs/N       N Han characters, up to 2,187, in 46 font designs; validation
                 and test images are in 7 and 8 designs of other families
  glyphs/kana    91 Japanese syllables, for few-shot evaluation
  glyphs/hangul  200 Korean syllables, for few-shot evaluation

A split has one image for each class and design. The fonts are those of Debian:
`datasets/fonts.py` lists packages and licences.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont

from vmoe_study.data.datasets import as_png, fonts, unregistered

SIZE = 28  # Pixels.
EM = 26  # Pixels per em: the square of a Han character.
SEED = 0
NUM_HANGUL = 200
# Rows of a code table that hold its most common characters ("level 1").
GB_LEVEL_1 = range(0xB0, 0xD8)
BIG5_LEVEL_1 = range(0xA4, 0xC7)
JIS_KANJI = range(0xB0, 0xF5)
KS_SYLLABLES = range(0xB0, 0xC9)
BASE_KANA = (
  "アイウエオカキクケコサシスセソタチツテト"
  "ナニヌネノハヒフヘホマミムメモヤユヨラリルレロワヲン"
)
TO_HIRAGANA = ord("あ") - ord("ア")


def code_rows(encoding: str, rows: range) -> set[str]:
  """All letters of a two-byte encoding whose first byte is in `rows`."""
  codes = [bytes((a, b)) for a in rows for b in range(0x40, 0xFF)]
  decoded = (code.decode(encoding, errors="replace") for code in codes)
  return {text for text in decoded if len(text) == 1 and text.isalpha()}


def han(count: int | None = None) -> list[str]:
  """`count` characters of level 1 in GB 2312 and Big5 that are in JIS X 0208.

  Their forms differ little between China, Taiwan and Japan. A smaller set is
  part of every larger one.
  """
  common = code_rows("gb2312", GB_LEVEL_1)
  common &= code_rows("big5", BIG5_LEVEL_1) & code_rows("euc_jp", JIS_KANJI)
  return _shuffled(common)[:count]


def hangul() -> list[str]:
  """200 of the 2,350 syllables of KS X 1001."""
  return _shuffled(code_rows("euc_kr", KS_SYLLABLES))[:NUM_HANGUL]


def kana() -> list[str]:
  """46 hiragana and 45 katakana; "he" looks the same in both."""
  hiragana = [chr(ord(kana) + TO_HIRAGANA) for kana in BASE_KANA]
  return [*hiragana, *BASE_KANA.replace("ヘ", "")]


def _shuffled(characters: set[str]) -> list[str]:
  rng = np.random.default_rng(SEED)
  return list(rng.permutation(sorted(characters)))


def draw(character: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
  """Returns uint8 (28, 28, 1): the character in white, its box centred."""
  image = Image.new("L", (SIZE, SIZE))
  pen = ImageDraw.Draw(image)
  left, top, right, bottom = pen.textbbox((0, 0), character, font)
  corner = (SIZE - left - right) / 2, (SIZE - top - bottom) / 2
  pen.text(corner, character, fill=255, font=font)
  return np.asarray(image)[..., None]


with unregistered():

  class Glyphs(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `glyphs/N`, `glyphs/kana` and `glyphs/hangul`."""

    name = "glyphs"
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Install the Debian packages of the fonts."
    default_manual_dir = fonts.FONTS

    @classmethod
    def config_from_name(cls, name: str) -> tfds.core.BuilderConfig:
      """The config "N", the number of Han characters, "kana" or "hangul".

      Raises:
        ValueError: the name is none of these.
      """
      largest = len(han())
      number = int(name) if name.isdecimal() else 0
      if name not in ("kana", "hangul") and not 2 <= number <= largest:
        raise ValueError(
          f"data set 'glyphs/{name}': must be glyphs/N with N from 2 to "
          f"{largest}, glyphs/kana or glyphs/hangul. Use glyphs/1000, for "
          "example."
        )
      return tfds.core.BuilderConfig(name=name, description=f"{name} glyphs")

    def _characters(self) -> list[str]:
      match self.builder_config.name:
        case "kana":
          return kana()
        case "hangul":
          return hangul()
        case number:
          return han(int(number))

    def _designs(self) -> fonts.Designs:
      sets = {"kana": fonts.KANA, "hangul": fonts.HANGUL}
      return sets.get(self.builder_config.name, fonts.HAN)

    def _info(self) -> tfds.core.DatasetInfo:
      return self.dataset_info_from_configs(
        description="Characters in many fonts, drawn by FreeType.",
        features=tfds.features.FeaturesDict(
          {
            "image": tfds.features.Image(shape=(SIZE, SIZE, 1)),
            "label": tfds.features.ClassLabel(names=self._characters()),
          }
        ),
        supervised_keys=("image", "label"),
      )

    def check_manual_dir(self, folder: Path) -> None:
      """Raises MissingDataError if a font is missing; names its package."""
      fonts.check_installed(folder, self._designs())

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
      folder = Path(dl_manager.manual_dir)
      return {
        split: self._generate_examples(folder, designs)
        for split, designs in self._designs().items()
      }

    def _generate_examples(
      self, folder: Path, designs: tuple[fonts.Design, ...]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
      """One image for each character and design that has the character."""
      characters = self._characters()
      for number, design in enumerate(designs):
        font = design.load(folder, EM)
        empty = draw("\uffff", font)
        for label, character in enumerate(characters):
          image = draw(character, font)
          if image.any() and not np.array_equal(image, empty):
            yield f"{number}/{label}", {"image": as_png(image), "label": label}
