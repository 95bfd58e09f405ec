"""The notebooks run from top to bottom in a kernel of their own."""

import importlib.util
import json
import os
import pathlib

import cv2
import nbformat
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from vmoe_study.cli.main import main

from ..programs import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
SAMPLES = ROOT / "tests" / "data" / "reference" / "vmoe_checkpoint"
TINY = [
  "--config.model.fields.width=16",
  "--config.model.fields.depth=2",
  "--config.model.fields.mlp_dim=32",
  "--config.train.num_epochs=0",
  "--config.train.num_steps=8",
  "--config.train.report_every=4",
  "--config.train.schedule.warmup_steps=2",
]
QUICK = ["--config.fewshot={}"]


@pytest.fixture
def run(tmp_path):
  """Runs a notebook on one device, and returns an expression's value there."""

  def run(name, expression="None", **parameters):
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    [place] = [
      i
      for i, cell in enumerate(notebook.cells)
      if "parameters" in cell.metadata.get("tags", [])
    ]
    lines = [f"{key} = {value!r}" for key, value in parameters.items()]
    given = nbformat.v4.new_code_cell("\n".join(lines))
    notebook.cells.insert(place + 1, given)
    out = tmp_path / "value.json"
    dump = f"import json\njson.dump({expression}, open({str(out)!r}, 'w'))"
    notebook.cells.append(nbformat.v4.new_code_cell(dump))
    environment = {"XLA_FLAGS": xla_flags(1), "PYTHONPATH": str(ROOT)}
    client = NotebookClient(
      notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=os.environ | environment)
    return json.loads(out.read_text())

  return run


@pytest.fixture(scope="module")
def trained_on_eight(tmp_path_factory):
  """Workdir and test loss of a run whose experts live on eight devices."""
  folder = tmp_path_factory.mktemp("run")
  data_dir = folder / "data"
  data = ["data", "evaluations.test.data"]
  data = [f"--config.{where}.data_dir={data_dir}" for where in data]
  arguments = [
    "--config=configs/digits.py:router=softmax_expert_choice",
    f"--workdir={folder / 'work'}",
    "--config.mesh.expert=8",
    *(TINY + QUICK + data),
  ]
  assert main(["train", *arguments]) == 0
  out = folder / "metrics.json"
  workdir = folder / "work"
  options = [f"--workdir={workdir}", "--trust-data-dirs", f"--out={out}"]
  assert main(["evaluate", *options]) == 0
  return str(workdir), json.loads(out.read_text())


WHAT_WAS_FOUND = """{
  "devices": jax.device_count(),
  "metrics": metrics,
  "factors": list(accuracies),
  "sent": {name: shares.sum((0, 1, 2)).tolist()
           for name, shares in sent.items()},
  "load": {name: aux.tokens_per_expert.sum(0).tolist() for name, aux in
           model.evaluation_module.apply(
             {"params": params}, batch["image"])[1].aux.items()},
}"""


def test_a_checkpoint_of_eight_devices_opens_on_one(run, trained_on_eight):
  workdir, expected = trained_on_eight
  found = run(
    "evaluate_checkpoint.ipynb",
    WHAT_WAS_FOUND,
    WORKDIR=workdir,
    TRUST_DATA_DIRS=True,
    CAPACITIES=[0.25, 0.5],
  )
  assert found["devices"] == 1
  assert found["metrics"]["test/loss"] == pytest.approx(
    expected["test/loss"], rel=1e-5
  )
  assert found["metrics"]["test/examples"] == 359
  # Of 16 tokens, 0.25 leaves none for each of 8 experts.
  assert found["factors"] == [0.5]
  # What the pictures show is what the model did.
  assert list(found["sent"]) == ["encoderblock_1"]
  assert found["sent"] == found["load"]


CONFIG = """
from ml_collections import config_dict

def get_config():
  moe = {"router": "softmax_token_choice", "options": {"num_experts": 4}}
  fields = {"num_classes": 10, "patch_size": 8, "width": 32, "depth": 4,
            "mlp_dim": 64, "num_heads": 4}
  data = {"name": "image_folder", "data_dir": "FOLDER", "split": "test",
          "num_classes": 10, "ops": "resize(32)|value_range(-1, 1)"}
  return config_dict.ConfigDict({
    "name": "imported", "model": {"fields": fields, "moe": moe}, "data": data,
    "train": {"batch_size": 8, "num_steps": 1}, "shots": (1,),
    "fewshot": {"own": {"train": data, "test": data, "batch_size": 8}}})
"""


def test_a_vmoe_checkpoint_opens(run, tmp_path, folder_of_images):
  path = tmp_path / "config.py"
  path.write_text(CONFIG.replace("FOLDER", str(folder_of_images)))
  found = run(
    "evaluate_checkpoint.ipynb",
    WHAT_WAS_FOUND,
    VMOE_PREFIX=str(SAMPLES / "vmoe_v1"),
    CONFIG=str(path),
    NUM_IMAGES=2,
  )
  # Shots are tested on themselves.
  assert found["metrics"]["fewshot/own/1shot"] == 1
  assert found["sent"] == found["load"]
  assert list(found["sent"]) == ["encoderblock_1", "encoderblock_3"]


@pytest.fixture
def folder_of_images(tmp_path):
  """One image per class, under test/."""
  rng = np.random.default_rng(0)
  for label in range(10):
    folder = tmp_path / "images" / "test" / str(label)
    folder.mkdir(parents=True)
    image = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "0.png"), image)
  return tmp_path / "images"


def test_a_new_router_trains(run, monkeypatch, tmp_path):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  found = run(
    "add_your_router.ipynb",
    "[list(read_metrics(w))[-1]['test/examples'] for w in workdirs.values()]",
    OVERRIDES=[*TINY, *QUICK],
  )
  assert found == [359, 359]


def test_a_vmoe_checkpoint_needs_its_config(run):
  with pytest.raises(CellExecutionError, match="give the CONFIG"):
    run("evaluate_checkpoint.ipynb", VMOE_PREFIX="vmoe_v1")


PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_first_cell_installs(path, monkeypatch, tmp_path):
  """With pip replaced by a list of what it was asked to install."""
  notebook = nbformat.read(path, as_version=4)
  [cell, *_] = [c for c in notebook.cells if c.cell_type == "code"]
  source = TransformerManager().transform_cell(cell.source)
  installed = []

  class Shell:
    def run_line_magic(self, name, line):
      words = name, *line.replace("$SOURCE", names["SOURCE"]).split()
      installed.append(" ".join(words))

  names = {"get_ipython": Shell}
  exec(source, names)
  assert not installed  # It is here already.
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="fill in REPOSITORY above"):
    exec(source, names)
  filled = source.replace('REPOSITORY = ""', 'REPOSITORY = "https://a/b"')
  exec(filled, names)
  assert installed.pop().startswith('pip install -q "git+https://a/b" ')
  monkeypatch.chdir(NOTEBOOKS)
  exec(source, names)
  assert installed.pop().startswith('pip install -q ".." ')


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert "pip install" in code[0].source
  for cell in code:
    assert not cell.outputs and cell.execution_count is None


def test_the_committed_results_make_the_committed_tables(run):
  found = run(
    "study_tables.ipynb",
    "[[*map(len, (cells, figures(cells)))], list(differences.values())]",
    RESULTS=[str(NOTEBOOKS / "study")],
  )
  (count, drawn), differences = found
  assert count == 31 and drawn == 3
  assert len(differences) == 24
