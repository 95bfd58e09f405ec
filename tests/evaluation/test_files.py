"""The files of an evaluation hold what was found, whatever names are like."""

import csv
import html.parser
import json
import math

import jax
import numpy as np
import pytest

from vmoe_study.evaluation.charts import MAX_NAMED
from vmoe_study.evaluation.files import write_evaluation
from vmoe_study.evaluation.mistakes import Mistake
from vmoe_study.evaluation.outcomes import outcomes
from vmoe_study.evaluation.result import Classification
from vmoe_study.training.loss import softmax_xent

pytestmark = pytest.mark.slow

NAMES = [
  "größe",
  "猫|犬",
  "<script>x</script>",
  'a,"b"\nc',
  "$5_^$",
  "\U00013000",
]
NAME = "../../a <b>"  # Of the evaluation; the config may be a stranger's.


def classification(names, images=90):
  rng = np.random.default_rng(0)
  label = rng.integers(0, len(names) - 1, images)  # None of the last class.
  logits = rng.normal(size=(images, len(names))).astype(np.float32)
  logits[np.arange(images), label] += 2
  targets = np.eye(len(names), dtype=np.float32)[label]
  found = outcomes(logits, targets, softmax_xent, jax.nn.softmax)
  return Classification(NAME, names, np.arange(images), jax.device_get(found))


def write(out, names):
  found = classification(names)
  image = np.zeros((4, 4, 3), np.uint8)
  mistake = Mistake("f/<i>.png", image, names[2:4], None, [(names[1], 0.5)])
  metrics = found.metrics() | {"nothing": math.nan}
  write_evaluation(out, "A & B", metrics, {NAME: found}, {NAME: [mistake]})
  [folder] = [path for path in out.iterdir() if path.is_dir()]
  return found, folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """The folder of an evaluation of odd names, what was found, its folder."""
  out = tmp_path_factory.mktemp("odd_names") / "inner" / "out"
  return out, *write(out, NAMES)


class Page(html.parser.HTMLParser):
  def __init__(self, text):
    super().__init__()
    self.tags, self.text = set(), ""
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.add(tag)

  def handle_data(self, data):
    self.text += data


def test_odd_names_are_kept_in_all_files(written):
  out, found, folder = written
  assert len([*out.parents[1].rglob("classes.csv")]) == 1
  assert folder.parent == out
  with open(folder / "confusion.csv", newline="") as file:
    header, *rows = csv.reader(file)
  assert header[1:] == NAMES == [row[0] for row in rows]
  counts = [[int(count) for count in row[1:]] for row in rows]
  np.testing.assert_array_equal(counts, found.confusion.matrix())
  page = Page((out / "index.html").read_text())
  assert not {"script", "i"} & page.tags
  for name in [*NAMES, NAME, "A & B", "<i>.png"]:
    assert name in page.text


def test_what_is_no_number_is_null_or_empty(written):
  out, _, folder = written

  def refuse(constant):
    raise AssertionError(constant)

  text = (out / "metrics.json").read_text()
  metrics = json.loads(text, parse_constant=refuse)
  assert metrics["nothing"] is None and metrics[f"{NAME}/examples"] == 90
  with open(folder / "classes.csv", newline="") as file:
    *_, last = csv.DictReader(file)
  assert (last["images"], last["accuracy"], last["low"]) == ("0", "", "")


def test_too_many_classes_to_name_have_a_second_picture(written, tmp_path):
  *_, few = written
  names = [f"class {n}" for n in range(MAX_NAMED + 1)]
  _, many = write(tmp_path / "many", names)
  for form in ("png", "svg"):
    assert (many / f"confusion.{form}").exists()
    assert (many / f"confused_classes.{form}").exists()
    assert not (few / f"confused_classes.{form}").exists()
  page = (tmp_path / "many" / "index.html").read_text()
  assert "All classes, by number" in page
