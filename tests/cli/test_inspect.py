"""`inspect` on a small trained model, against what `evaluate` finds."""

import json

import pytest

from vmoe_study.cli.main import main
from vmoe_study.inspection import inspect as inspect_lib
from vmoe_study.inspection.files import write_inspection
from vmoe_study.training.metrics_file import read_metrics


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
  """What `inspect` wrote, the options it gave to Python, and the result."""
  out, calls = tmp_path_factory.mktemp("inspect") / "out", []
  inspect = inspect_lib.inspect

  def kept(checkpoint, **options):
    calls.append((options, inspect(checkpoint, **options)))
    return calls[-1][1]

  words = ["--num-images=1000", "--num-shown=3", "--capacities=0.01,0.5,1"]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(inspect_lib, "inspect", kept)
    command = ["inspect", f"--workdir={trained}", f"--out={out}"]
    assert main([*command, *words]) == 0
  [(options, inspection)] = calls
  return out, options, inspection


@pytest.fixture(scope="module")
def out(run):
  return run[0]


@pytest.fixture(scope="module")
def numbers(out):
  return json.loads((out / "statistics.json").read_text())


def test_accuracy_is_that_of_evaluate(trained, numbers, tmp_path):
  rows = [row for row in read_metrics(trained) if "test/accuracy" in row]
  accuracy = rows[-1]["test/accuracy"]
  assert numbers["accuracy"]["count"] == numbers["num_images"] == 359
  assert numbers["accuracy"]["mean"] == pytest.approx(accuracy, abs=1e-6)
  file = tmp_path / "metrics.json"
  command = ["evaluate", f"--workdir={trained}", f"--out={file}"]
  options = ["--config.evaluation_capacity=1", "--config.fewshot={}"]
  assert main([*command, *options]) == 0
  expected = json.loads(file.read_text())["test/accuracy"]
  same, whole = numbers["capacities"]
  assert (same["factor"], whole["factor"]) == (0.5, 1)
  assert (same["slots_per_expert"], whole["slots_per_expert"]) == (4, 8)
  assert whole["accuracy"]["mean"] == pytest.approx(expected, abs=1e-6)
  assert same["change"]["mean"] == 0
  assert "capacity_factor=0.01" in numbers["left_out"][0]


def test_numbers_agree_with_each_other(numbers):
  [layer] = numbers["layers"].values()
  assert sum(layer["load"]) == pytest.approx(4)
  assert sum(layer["experts_per_token"]) == pytest.approx(1)
  assert layer["experts_per_token"][0] == layer["unprocessed"]
  assert layer["experts_per_token"][3:] == [0, 0]  # K = 2.
  for row in layer["class_by_expert"]:
    assert sum(row) == pytest.approx(1)
  assert len(layer["class_by_expert"]) == len(numbers["class_names"]) == 10
  assert layer["mutual_information"] > layer["shuffled_information"] > 0
  # Of K S choices, those that are served, over E C = 0.5 K S slots.
  served = sum(i * s for i, s in enumerate(layer["experts_per_token"])) / 2
  assert sum(layer["slot_use"]) / 4 == pytest.approx(served / 0.5)


def test_it_leaves_a_page_and_pictures(out):
  page = (out / "index.html").read_text()
  layer = {f"encoderblock_1_{kind}" for kind in KINDS}
  assert {path.stem for path in out.glob("*.png")} == layer | {
    "training",
    "capacity",
    "patches",
  }
  assert page.count("data:image/png") == len(layer) + 3


KINDS = ("charts", "classes", "patches", "tensors")


def test_python_writes_the_same_as_the_command(run, tmp_path):
  out, options, inspection = run
  expected = {"num_images": 1000, "num_shown": 3, "out": str(out)}
  assert options == {**expected, "capacity_factors": [0.01, 0.5, 1]}
  names = {path.stem for path in out.glob("*.png")}
  assert inspection.figures().keys() == names
  again = tmp_path / "again"
  write_inspection(inspection, again)
  for path in out.iterdir():
    assert (again / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("--config.evaluations={}", "config.evaluations={}"),
    ("--config.model.moe.group_images=400", "at most 359"),
    ("--config.model.fields.width=32", "in the checkpoint"),
    ("--step=5", "holds no step 5"),
  ],
)
def test_what_cannot_be_is_explained(
  trained, override, message, tmp_path, capsys
):
  out = tmp_path / "out"
  options = [f"--workdir={trained}", f"--out={out}", override]
  assert main(["inspect", *options]) == 2
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error
  assert not out.exists()


@pytest.mark.parametrize(
  "option",
  ["--capacities=1,-2", "--capacities=a", "--num-shown=0", "--num-shown=a"],
)
def test_bad_options_are_refused(option, capsys):
  with pytest.raises(SystemExit):
    main(["inspect", "--workdir=none", "--out=none", option])
  assert "must be " in capsys.readouterr().err


def test_a_folder_without_checkpoints(tmp_path, capsys):
  assert main(["inspect", f"--workdir={tmp_path}/none", "--out=none"]) == 2
  assert "there is no such folder" in capsys.readouterr().err
