"""What FINDINGS.md says of the study stands in the committed tables."""

import pathlib
import re
import runpy

import pytest

STUDY = pathlib.Path(__file__).parents[2] / "notebooks" / "study"
GRID, CONTROLS = STUDY / "grid", STUDY / "controls"
INTERVAL = re.compile(r"(\d+\.\d+) ± (\d+(?:\.\d+)?)")

pytestmark = pytest.mark.unit


def test_the_committed_results_make_the_exploratory_table(
  tmp_path, monkeypatch
):
  words = [str(GRID), str(CONTROLS), f"--out={tmp_path}"]
  monkeypatch.setattr("sys.argv", ["exploratory.py", *words])
  runpy.run_path(str(STUDY / "exploratory.py"), run_name="__main__")
  remade = (tmp_path / "exploratory.md").read_text()
  assert remade == (GRID / "exploratory.md").read_text()


def test_every_interval_is_in_a_table():
  tables = "".join(file.read_text() for file in STUDY.glob("*/*.md"))
  known = {(float(x), float(y)) for x, y in INTERVAL.findall(tables)}
  found = INTERVAL.findall((STUDY / "FINDINGS.md").read_text())
  assert len(found) > 30
  for pair in found:
    digits = [len(text.partition(".")[2]) for text in pair]
    places = [0.51 * 10**-n for n in digits]
    assert any(
      all(
        abs(value - float(text)) <= place
        for value, text, place in zip(values, pair, places, strict=True)
      )
      for values in known
    ), pair
