"""The committed models and images, and the commands that documents give."""

import csv
import glob
import json
import pathlib
import re
import shlex

import pytest
from tensorflow_datasets.core import constants as tfds_constants

from vmoe_study import compare, open_checkpoint
from vmoe_study.cli.main import main
from vmoe_study.config import parse
from vmoe_study.run.metadata import Metadata

pytestmark = pytest.mark.cli

ROOT = pathlib.Path(__file__).parents[2]
MODELS = ROOT / "notebooks" / "models"
PATHS = sorted(path.parent for path in MODELS.glob("*/model.safetensors"))
DOCUMENTS = ("README.md", "notebooks/models/README.md")
MOST_BYTES = 3_000_000  # Of a model.
QUICK = {"inspect": ["--num-images=16", "--num-shown=8", "--capacities=1"]}
CSV = [
  "evaluations.test.data.name=image_csv",
  f"evaluations.test.data.data_dir={MODELS / 'images'}",
]


def commands():
  """Every command of a document that names a committed model, once."""
  text = "\n".join((ROOT / name).read_text() for name in DOCUMENTS)
  found = re.findall(r"^vmoe-study (.*notebooks/models/.*)$", text, re.M)
  return list(dict.fromkeys(found))


@pytest.fixture
def _clone(digits_folder, monkeypatch, tmp_path):
  """A folder like that of a clone, in which commands may write."""
  (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("TFDS_DATA_DIR", str(digits_folder))
  monkeypatch.setattr(tfds_constants, "DATA_DIR", str(digits_folder))


def classes():
  with (MODELS / "images" / "test.csv").open(newline="") as file:
    return {row["image"]: row["label"] for row in csv.DictReader(file)}


@pytest.mark.usefixtures("_clone")
@pytest.mark.parametrize("command", commands())
def test_commands_of_documents(command, capsys):
  name, *words = shlex.split(command)
  words = [path for word in words for path in sorted(glob.glob(word)) or [word]]
  assert main([name, *words, *QUICK.get(name, [])]) == 0
  assert capsys.readouterr().out.strip()


def test_commands_are_found():
  names = [command.split()[0] for command in commands()]
  assert {*names} >= {"predict", "evaluate", "inspect"}


def test_there_are_six_routers_of_one_kind():
  """They differ in the router alone."""
  configs = []
  for path in PATHS:
    assert (path / "model.safetensors").stat().st_size < MOST_BYTES
    text = (path / "config.json").read_text()
    assert not re.search(r"/(tmp|root|home|usr)/", text)
    config = parse(Metadata.from_dict(json.loads(text)).config)
    assert config.model.moe.router == path.name
    configs.append((config.seed, config.model.fields, config.train.num_epochs))
  assert len(configs) == 6 and configs.count(configs[0]) == 6


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_they_know_the_images(path):
  expected = classes()
  found = open_checkpoint(path).predict(MODELS / "images")
  assert len(found) == len(expected) == 16
  right = [
    prediction.top(1)[0][0] == expected[pathlib.Path(prediction.name).name]
    for prediction in found
  ]
  assert sum(right) >= 12


def test_rows_of_a_comparison_have_the_labels_given():
  path = MODELS / "softmax_expert_choice"
  models = {
    f"capacity {factor}": open_checkpoint(
      path, overrides=[*CSV, f"evaluation_capacity={factor}"]
    )
    for factor in (0.5, 2)
  }
  figure = compare(models, num_images=2)
  axes = figure.axes
  assert [axes[0].get_ylabel(), axes[2].get_ylabel(), axes[4].get_ylabel()] == [
    "",
    *models,
  ]
  less, more = (len(axes[n].texts) for n in (2, 4))
  assert 0 < less < more  # Numbers of experts on patches.
