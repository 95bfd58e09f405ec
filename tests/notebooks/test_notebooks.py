"""The notebooks run from top to bottom in a kernel of their own, with pictures.

What is committed is checked, too: their outputs, first cells and badges.
"""

import base64
import importlib.util
import json
import os
import pathlib
import re
import runpy
import types

import cv2
import nbformat
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbclient import NotebookClient

from vmoe_study.run.checkpoint import open_checkpoint
from vmoe_study.training.metrics_file import read_metrics

from ..programs import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
SAMPLES = ROOT / "tests" / "data" / "reference" / "vmoe_checkpoint"
TINY = [
  "model.fields.width=16",
  "model.fields.depth=2",
  "model.fields.mlp_dim=32",
  "train.num_epochs=0",
  "train.num_steps=8",
  "train.report_every=4",
  "train.schedule.warmup_steps=2",
  "fewshot={}",
]
PICTURES = {
  "add_your_router": 1,
  "evaluate_checkpoint": 2,
  "look_at_routers": 9,
  "study_tables": 3,
}
HALF = ["evaluation_capacity=0.5"]
# Warnings, paths and times of the machine that executed a notebook.
MACHINE = re.compile(r"Warning|/(tmp|root|home|usr)/|\d:\d\d:\d\d")
MOST_BYTES = 500_000  # Of a notebook with its outputs.


def pictures(notebook):
  """The images in the outputs, as arrays (H, W, 3)."""
  found = [
    output.data["image/png"]
    for cell in notebook.cells
    for output in cell.get("outputs", [])
    if "image/png" in output.get("data", {})
  ]
  content = [np.frombuffer(base64.b64decode(png), np.uint8) for png in found]
  return [cv2.imdecode(png, cv2.IMREAD_COLOR) for png in content]


def check_pictures(notebook, count):
  """Each has a size to be seen, and something on it."""
  found = pictures(notebook)
  assert len(found) == count
  for image in found:
    assert min(image.shape[:2]) > 150 and image.std() > 10


@pytest.fixture
def run(tmp_path):
  """Runs a notebook on one device, and returns an expression's value there.

  Checks that it shows as many pictures as are given, and no warnings.
  """

  def run(name, expression="None", images=None, **parameters):
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    lines = [f"{key} = {value!r}" for key, value in parameters.items()]
    given = nbformat.v4.new_code_cell("\n".join(lines))
    cells = []
    for cell in notebook.cells:
      is_changed = "parameters" in cell.metadata.get("tags", [])
      cells += [cell, given] if is_changed else [cell]
    notebook.cells = cells
    out = tmp_path / "value.json"
    dump = f"import json\njson.dump({expression}, open({str(out)!r}, 'w'))"
    notebook.cells.append(nbformat.v4.new_code_cell(dump))
    environment = {"XLA_FLAGS": xla_flags(1), "PYTHONPATH": str(ROOT)}
    client = NotebookClient(
      notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}
    )
    client.execute(env=os.environ | environment)
    count = PICTURES[pathlib.Path(name).stem] if images is None else images
    check_pictures(notebook, count)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if "Warning" in o.get("text", "")]
    return json.loads(out.read_text())

  return run


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


def test_a_checkpoint_of_eight_devices_opens_on_one(run, trained):
  *_, expected = (row for row in read_metrics(trained) if "test/loss" in row)
  found = run(
    "evaluate_checkpoint.ipynb",
    WHAT_WAS_FOUND,
    WORKDIR=str(trained),
    TRUST_DATA_DIRS=True,
    OVERRIDES=["fewshot={}"],
    CAPACITIES=[0.05, 0.5],
  )
  assert found["devices"] == 1
  assert found["metrics"]["test/loss"] == pytest.approx(
    expected["test/loss"], rel=1e-5
  )
  assert found["metrics"]["test/examples"] == 359
  # Of 2 choices of 16 tokens, 0.05 leaves none for each of 4 experts.
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
    images=1,  # There is no evaluation whose accuracy could be drawn.
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


def test_a_new_router_trains(run, monkeypatch, digits_folder):
  monkeypatch.setenv("TFDS_DATA_DIR", str(digits_folder))
  found = run(
    "add_your_router.ipynb",
    "[list(read_metrics(w))[-1]['test/examples'] for w in workdirs.values()]",
    OVERRIDES=TINY,
  )
  assert found == [359, 359]


def test_a_vmoe_checkpoint_needs_its_config():
  """By the cell that says so."""
  path = NOTEBOOKS / "evaluate_checkpoint.ipynb"
  cells = nbformat.read(path, as_version=4).cells
  [given] = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
  [checked] = [c for c in cells if "give the CONFIG" in c.source]
  names = {}
  exec(given.source, names)
  names["VMOE_PREFIX"] = "vmoe_v1"
  with pytest.raises(ValueError, match="give the CONFIG"):
    exec(checked.source, names)


def test_six_routers_are_looked_at(run):
  """Two of them, and the predictions of one against Python."""
  routers = ["softmax_expert_choice", "soft"]
  classes, table, means = run(
    "look_at_routers.ipynb",
    "[classes, table, means]",
    images=5,
    ROUTERS=routers,
    SHOWN=["soft"],
    CAPACITIES=[0.5],
  )
  models = NOTEBOOKS / "models"
  files = sorted((models / "images").glob("*.png"))
  found = open_checkpoint(models / routers[0]).predict(files)
  best = [prediction.top(1)[0] for prediction in found]
  assert [row[1] for row in table] == [
    f"{label} ({share:.0%})" for label, share in best
  ]
  half = open_checkpoint(models / routers[0], overrides=HALF).predict(files)
  shares = [
    dict(prediction.top(None))[name]
    for prediction, name in zip(half, classes, strict=True)
  ]
  assert means[0] == pytest.approx(np.mean(shares), abs=1e-4)


PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
ADDRESS = "https://github.com/user/name"


@pytest.fixture(scope="module")
def rendering():
  """The functions and constants of render.py."""
  return types.SimpleNamespace(**runpy.run_path(str(NOTEBOOKS / "render.py")))


def first_cell(notebook):
  [cell, *_] = [c for c in notebook.cells if c.cell_type == "code"]
  return TransformerManager().transform_cell(cell.source)


class Shell:
  """Writes down the commands that a cell gives, and follows `%cd`."""

  def __init__(self, names):
    self.names, self.commands = names, []

  def system(self, command):
    self.commands.append(self._filled(command))
    if command.startswith("git clone"):
      (pathlib.Path(self.names["CLONE"]) / "notebooks").mkdir(parents=True)
      (self.names["CLONE"] / "notebooks" / "install.py").touch()

  def run_line_magic(self, name, line):
    self.commands.append(f"{name} {self._filled(line)}")
    if name == "cd":
      os.chdir(self._filled(line).split()[-1].strip('"'))

  def _filled(self, text):
    return re.sub(r"\$(\w+)", lambda m: str(self.names[m[1]]), text)


def test_the_first_cell_fetches_and_installs(rendering, monkeypatch, tmp_path):
  """With commands replaced by a list of them."""
  notebook = nbformat.read(PATHS[0], as_version=4)
  names = {}
  shell = Shell(names)
  names["get_ipython"] = lambda: shell
  alone = first_cell(notebook)
  monkeypatch.chdir(NOTEBOOKS)
  exec(alone, names)
  assert not shell.commands  # It is here already.
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  exec(alone, names)
  assert shell.commands == ["run install.py"]
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="open this notebook in a clone"):
    exec(alone, names)
  rendering.render(notebook, PATHS[0].name, ADDRESS)
  known = first_cell(notebook)
  expected = ['cd -q "vmoe_study_clone/notebooks"', "run install.py"]
  shell.commands.clear()
  exec(known, names)
  clone = f'git clone -q --depth 1 "{ADDRESS}" "vmoe_study_clone"'
  assert shell.commands == [clone, *expected]
  monkeypatch.chdir(tmp_path)  # As after a restart of the session.
  shell.commands.clear()
  exec(known, names)
  assert shell.commands == expected


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_one_address_for_all(path, rendering):
  notebook = nbformat.read(path, as_version=4)
  sources = [cell.source for cell in notebook.cells]
  rendering.render(notebook, path.name)
  assert [cell.source for cell in notebook.cells] == sources
  rendering.render(notebook, path.name, ADDRESS)
  rendering.render(notebook, path.name, ADDRESS)  # One badge, not two.
  badges = re.findall(r"\]\((https://colab[^)]*github[^)]*)\)", str(notebook))
  colab = "https://colab.research.google.com/github/user/name/blob/main"
  assert badges == [f"{colab}/notebooks/{path.name}"]
  assert f'REPOSITORY = "{ADDRESS}"' in notebook.cells[1].source
  rendering.render(notebook, path.name, rendering.REPOSITORY)
  assert [cell.source for cell in notebook.cells] == sources
  with pytest.raises(
    ValueError, match=r"must begin with 'https://github.com/'"
  ):
    rendering.render(notebook, path.name, "https://elsewhere/name")


def test_installing_keeps_what_is_there(monkeypatch):
  install = runpy.run_path(str(NOTEBOOKS / "install.py"))
  present = {"numpy"}
  find_spec = lambda name: "spec" if name in present else None  # noqa: E731
  monkeypatch.setattr(importlib.util, "find_spec", find_spec)
  clone, numpy = install["requirements"]()
  assert clone == str(ROOT) and numpy == f"numpy=={np.__version__}"
  present |= {"jax_cuda12_plugin"}
  assert install["requirements"]() == [f"{ROOT}[cuda12]", numpy]
  present.clear()
  assert install["requirements"]() == [str(ROOT)]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_outputs_are_committed(path):
  assert path.stat().st_size < MOST_BYTES
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  counts = [cell.execution_count for cell in code]
  assert counts == list(range(1, len(code) + 1))
  check_pictures(notebook, PICTURES[path.stem])
  for output in (output for cell in code for output in cell.outputs):
    assert output.output_type != "error" and output.get("name") != "stderr"
    plain = output.get("data", {}).get("text/plain", "")
    assert not MACHINE.search(output.get("text", plain))


def test_the_committed_results_make_the_committed_tables(run):
  found = run(
    "study_tables.ipynb",
    "[[*map(len, (cells, figures(cells)))], list(differences.values())]",
    RESULTS=[str(NOTEBOOKS / "study" / "grid")],
  )
  (count, drawn), differences = found
  assert count == 21 and drawn == 3
  assert len(differences) == 13
