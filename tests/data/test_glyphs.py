"""`glyphs` and `glyph_scenes`, drawn with a font that the test makes."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from vmoe_study.data import builders
from vmoe_study.data.builders import MissingDataError
from vmoe_study.data.dataset_specs import DATASETS
from vmoe_study.data.datasets import fonts, glyph_scenes, glyphs
from vmoe_study.data.decoding import decode
from vmoe_study.data.sources import open_split

EM_UNITS = 1000
BARS = 4


def make_font(path: Path, characters: list[str], slope: int) -> None:
  """Draws character n as the bars of the binary digits of n + 1.

  Args:
    path: of the font file.
    characters: that the font has.
    slope: font units by which a bar's right end is higher: its design.
  """
  names = [f"c{n}" for n in range(len(characters))]
  outlines = {".notdef": TTGlyphPen(None).glyph()}
  for number, name in enumerate(names, 1):
    pen = TTGlyphPen(None)
    for bar in range(BARS):
      if number >> bar & 1:
        y = 200 * bar
        corners = (100, y), (900, y + slope), (900, y + 120 + slope)
        pen.moveTo(corners[0])
        for corner in (*corners[1:], (100, y + 120)):
          pen.lineTo(corner)
        pen.closePath()
    outlines[name] = pen.glyph()
  builder = FontBuilder(EM_UNITS, isTTF=True)
  builder.setupGlyphOrder([".notdef", *names])
  builder.setupCharacterMap(
    {ord(c): name for c, name in zip(characters, names, strict=True)}
  )
  builder.setupGlyf(outlines)
  builder.setupHorizontalMetrics(dict.fromkeys(outlines, (EM_UNITS, 0)))
  builder.setupHorizontalHeader(ascent=800, descent=-200)
  builder.setupPost()
  builder.setupNameTable({"familyName": "Test", "styleName": "Regular"})
  builder.setupOS2()
  builder.save(path)


@pytest.fixture(scope="module")
def font_dir(tmp_path_factory):
  """Two designs of seven characters, one of six: the last is missing."""
  folder = tmp_path_factory.mktemp("fonts")
  characters = glyphs.han(7)
  make_font(folder / "flat.ttf", characters, 0)
  make_font(folder / "steep.ttf", characters, 60)
  make_font(folder / "poor.ttf", characters[:6], -60)
  return folder


@contextlib.contextmanager
def one_design_for_each_split():
  files = {"train": "flat.ttf", "val": "steep.ttf", "test": "poor.ttf"}
  table = {s: (fonts.Design("fonts-x", f),) for s, f in files.items()}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(fonts, "HAN", table)
    yield


@pytest.fixture(scope="module")
def seven(font_dir, tmp_path_factory):
  """A folder with `glyphs/7`."""
  folder = tmp_path_factory.mktemp("seven")
  with one_design_for_each_split():
    builders.prepare("glyphs/7", str(folder), str(font_dir))
  return folder


def test_every_split_draws_its_characters_in_its_own_design(seven):
  images = {}
  for split, size in (("train", 7), ("val", 7), ("test", 6)):
    source = open_split("glyphs/7", split, str(seven))
    assert len(source) == size
    assert list(source.class_names) == glyphs.han(7)
    images[split] = {
      source[i]["label"]: decode(source[i]["image"], 1) for i in range(size)
    }
  # Character n has as many bars as n + 1 has binary digits of value one.
  for label, image in images["train"].items():
    inked = (image[..., 0] > 128).any(1).astype(int)
    assert (np.diff(inked, prepend=0) == 1).sum() == (label + 1).bit_count()
  for label, image in images["test"].items():
    assert not np.array_equal(image, images["train"][label])


def test_a_scene_has_the_glyphs_of_its_labels_in_its_boxes(
  font_dir, tmp_path, monkeypatch
):
  counts = {"train": 40, "val": 2, "test": 2}
  monkeypatch.setattr(glyph_scenes, "IMAGES", counts)
  with one_design_for_each_split():
    builders.prepare("glyph_scenes/6", str(tmp_path), str(font_dir))
  builder = builders.open_prepared("glyph_scenes/6", str(tmp_path))
  numbers = set()
  for example in builder.as_data_source("train"):
    boxes = example["boxes"]
    assert example["image"].shape == (56, 56, 3)
    assert 1 <= len(boxes) == len(example["label"]) <= 4
    numbers.add(len(boxes))
    for n, (y0, x0, y1, x1) in enumerate(boxes):
      assert 0 <= y0 < y1 <= 1 and 0 <= x0 < x1 <= 1
      for b0, a0, b1, a1 in boxes[:n]:
        assert y1 <= b0 or b1 <= y0 or x1 <= a0 or a1 <= x0
  assert len(numbers) > 1


def test_content_contrasts_with_its_background():
  full = np.full((20, 20, 1), 255, np.uint8)
  for seed in range(20):
    scene = glyph_scenes.Scene(np.random.default_rng(seed))
    before = scene.image.copy()
    assert scene.add(full)
    y0, x0, y1, x1 = scene.boxes[0]
    changed = np.abs(scene.image - before).max(-1) > 1
    assert changed[y0:y1, x0:x1].any()
    changed[y0:y1, x0:x1] = False
    assert not changed.any()


def test_labels_are_long_tailed():
  rng = np.random.default_rng(0)
  drawn = [glyph_scenes.sample_labels(rng, 100) for _ in range(4000)]
  counts = np.bincount(np.concatenate(drawn), minlength=100)
  assert counts.size == 100
  assert counts[0] > 8 * counts[20:30].mean() > 16 * counts[90:].mean() > 0


def test_characters_are_those_of_three_codes_and_smaller_sets_are_nested():
  characters = glyphs.han()
  assert len(characters) == len(set(characters)) == 2187
  assert glyphs.han(100) == characters[:100]
  for encoding in ("gb2312", "big5", "euc_jp"):
    assert all(len(c.encode(encoding)) == 2 for c in characters)
  assert len(set(glyphs.kana())) == 91
  assert all("가" <= c <= "힣" for c in glyphs.hangul())
  assert len(set(glyphs.hangul())) == 200


def test_families_are_in_one_split():
  for table in (fonts.HAN, fonts.KANA, fonts.HANGUL):
    packages = [{d.package for d in designs} for designs in table.values()]
    assert sum(map(len, packages)) == len(set.union(*packages))
    assert all(len(set(d)) == len(d) for d in table.values())
  assert [len(designs) for designs in fonts.HAN.values()] == [46, 7, 8]
  assert len(fonts.KANA["test"]) >= 20 and len(fonts.HANGUL["test"]) >= 20


def test_missing_fonts_are_named_with_their_packages(tmp_path):
  with pytest.raises(MissingDataError) as error:
    builders.prepare("glyphs/7", str(tmp_path), str(tmp_path / "none"))
  message = str(error.value)
  assert "61 font designs are missing" in message
  assert "apt-get install" in message and "fonts-klee" in message


@pytest.mark.parametrize("name", ["glyphs/0", "glyphs/9999", "glyphs/x"])
def test_an_impossible_size_is_an_error(name, tmp_path):
  with pytest.raises(ValueError, match="from 2 to 2187, glyphs/kana"):
    builders.prepare(name, str(tmp_path))


def test_the_features_name_only_classes_of_tfds(seven):
  text = (seven / "glyphs/7/1.0.0/features.json").read_text()
  assert json.loads(text)["pythonClassName"].startswith("tensorflow_datasets.")


@pytest.mark.parametrize("name", [n for n in DATASETS if n.startswith("glyph")])
def test_dataset_specs_agree_with_the_builders(name, tmp_path):
  feature = builders.make_builder(name, str(tmp_path)).info.features["label"]
  feature = getattr(feature, "feature", feature)
  assert feature.num_classes == DATASETS[name].num_classes
