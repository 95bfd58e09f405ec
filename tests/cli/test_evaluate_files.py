"""`evaluate --out` writes what the model says of every image."""

import base64
import csv
import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image

from vmoe_study.cli.main import main
from vmoe_study.data.sources import open_split
from vmoe_study.run.checkpoint import open_checkpoint
from vmoe_study.training.metrics_file import read_metrics


@pytest.fixture(scope="module")
def images(digits_folder):
  """The test images, and their labels."""
  source = open_split("digits", "test", str(digits_folder))
  return [source[n]["image"] for n in range(len(source))], source.labels()


@pytest.fixture(scope="module")
def predictions(trained, images):
  """What `predict` makes of the images, all at once and in order."""
  checkpoint = open_checkpoint(trained)
  found = checkpoint.predict(images[0], batch_size=len(images[0]))
  return np.array([prediction.probabilities for prediction in found])


class Mistakes(html.parser.HTMLParser):
  """Pictures with a file's name, and the text of the page."""

  def __init__(self):
    super().__init__()
    self.pictures, self.text = [], ""

  def handle_starttag(self, tag, attributes):
    values = dict(attributes)
    if tag == "img" and "title" in values:
      data = base64.b64decode(values["src"].partition(",")[2])
      picture = np.asarray(Image.open(io.BytesIO(data)))
      self.pictures.append((values["title"], picture))

  def handle_data(self, data):
    self.text += data


def rows(file):
  with open(file, newline="") as lines:
    return list(csv.DictReader(lines))


def test_metrics_are_those_of_the_run(trained, evaluated):
  found = json.loads((evaluated / "metrics.json").read_text())
  expected = {}
  for row in read_metrics(trained):
    expected |= row
  for name in ("test/accuracy", "fewshot/digits/1shot"):
    assert found[name] == pytest.approx(expected[name], rel=1e-6)
  assert found["step"] == 32 and found["test/examples"] == 359


def test_every_image_is_counted_as_it_is_predicted(
  evaluated, images, predictions
):
  matrix = np.zeros((10, 10), int)
  np.add.at(matrix, (images[1], predictions.argmax(1)), 1)
  found = rows(evaluated / "test" / "confusion.csv")
  counts = [[int(row[str(n)]) for n in range(10)] for row in found]
  np.testing.assert_array_equal(counts, matrix)
  metrics = json.loads((evaluated / "metrics.json").read_text())
  assert metrics["test/accuracy"] == pytest.approx(matrix.trace() / 359)
  bins = rows(evaluated / "test" / "calibration.csv")
  assert sum(int(row["images"]) for row in bins) == 359
  for row in rows(evaluated / "test" / "confused_pairs.csv"):
    label, predicted = int(row["class"]), int(row["predicted"])
    assert int(row["images"]) == matrix[label, predicted]


def test_the_page_shows_the_surest_mistakes(evaluated, images, predictions):
  page = Mistakes()
  page.feed((evaluated / "index.html").read_text())
  wrong = np.flatnonzero(predictions.argmax(1) != images[1])
  confidence = predictions[wrong].max(1)
  order = wrong[np.argsort(-confidence, kind="stable")]
  shown = page.pictures
  assert len(shown) == min(48, len(wrong)) > 5
  for number, (where, picture) in zip(order, shown, strict=False):
    assert f"record {number}" in where
    original = np.asarray(Image.open(io.BytesIO(images[0][number])))
    np.testing.assert_array_equal(picture, original)
  assert f"{len(shown)} of {len(wrong)} misclassified" in page.text
  assert f"{100 * confidence.max():.2f}%" in page.text


def test_figures_are_written_in_both_forms(evaluated):
  names = {path.name for path in (evaluated / "test").iterdir()}
  drawn = {"calibration", "confusion"}
  assert {f"{n}.{form}" for n in drawn for form in ("png", "svg")} <= names


def test_a_file_in_the_place_of_the_folder_is_refused(
  trained, tmp_path, capsys
):
  file = tmp_path / "metrics"
  file.write_text("mine")
  command = ["evaluate", f"--workdir={trained}", "--trust-data-dirs"]
  assert main([*command, f"--out={file}"]) == 2
  assert f"out={file}: is a file" in capsys.readouterr().err
  assert file.read_text() == "mine"
