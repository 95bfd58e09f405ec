"""The main job through its command line, on real images, in few steps."""

import json
import shutil

import jax
import numpy as np
import pytest

from vmoe_study.checkpoint.load import load_params
from vmoe_study.cli.main import main
from vmoe_study.run import evaluate as evaluate_lib
from vmoe_study.run import train as train_lib
from vmoe_study.training.metrics_file import read_metrics

ARGUMENTS = "router=softmax_token_choice,k=2"
TINY = [
  "--config.model.fields.width=16",
  "--config.model.fields.depth=2",
  "--config.model.fields.mlp_dim=32",
  "--config.model.fields.dropout_rate=0.1",
  "--config.model.moe.options.num_experts=4",
  "--config.train.num_epochs=0",
  "--config.train.num_steps=6",
  "--config.train.schedule.warmup_steps=2",
  "--config.train.evaluate_every=3",
  "--config.train.save_every=3",
  "--config.train.report_every=2",
  "--config.shots=(1,5)",
]


def train(workdir, *overrides, arguments=ARGUMENTS):
  config = f"--config=configs/digits.py:{arguments}"
  return main(["train", config, f"--workdir={workdir}", *TINY, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """The workdir of a finished run."""
  workdir = tmp_path_factory.mktemp("run") / "work"
  assert train(workdir) == 0
  return workdir


def rows_without_timing(workdir):
  timing = ("second", "wait")
  return [
    {k: v for k, v in row.items() if not any(t in k for t in timing)}
    for row in read_metrics(workdir)
  ]


def test_a_run_leaves_metrics_and_a_summary(finished, capsys):
  rows = list(read_metrics(finished))
  steps = [row["step"] for row in rows]
  assert steps == [0, 2, 3, 4, 6, 6]  # Sizes, training, evaluation, ...
  names = set().union(*rows)
  assert {
    "train/loss",
    "train/images_per_second",
    "train/data_wait_share",
    "train/learning_rate",
    "train/gradient_norm",
    "train/routing/encoderblock_1/unprocessed",
    "train/routing/encoderblock_1/load_loss",
    "test/accuracy",
    "test/loss",
    "fewshot/digits/5shot",
  } <= names
  assert rows[-1]["test/examples"] == 359
  assert main(["report", str(finished)]) == 0
  table = capsys.readouterr().out
  assert "softmax_token_choice" in table and "test/accuracy" in table


def test_a_resumed_run_ends_bit_identical(finished, tmp_path):
  workdir = tmp_path / "work"
  shutil.copytree(finished, workdir)
  shutil.rmtree(workdir / "checkpoints" / "6")
  assert train(workdir) == 0
  first, _, _ = load_params(finished / "checkpoints")
  again, _, step = load_params(workdir / "checkpoints")
  assert step == 6
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert rows_without_timing(workdir) == rows_without_timing(finished)


def test_a_run_without_its_last_evaluation_has_not_finished(
  finished, tmp_path, capsys
):
  workdir = tmp_path / "work"
  shutil.copytree(finished, workdir)
  metrics = workdir / "metrics.jsonl"
  lines = metrics.read_text().splitlines(keepends=True)
  metrics.write_text("".join(lines[:-1]) + lines[-1][:20])
  assert main(["report", str(workdir)]) == 0
  table = capsys.readouterr().out
  assert "missing" in table and "test/accuracy" not in table
  assert train(workdir) == 0
  assert rows_without_timing(workdir) == rows_without_timing(finished)


@pytest.mark.usefixtures("eight_devices")
def test_a_finished_run_is_described_in_a_line_and_stays(finished, caplog):
  before = rows_without_timing(finished)
  caplog.set_level("INFO", logger="absl")
  assert train(finished) == 0
  params, _, _ = load_params(finished / "checkpoints")
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  (line,) = [text for text in caplog.messages if "parameters" in text]
  assert line.startswith(f"{count:,} parameters, ") and "\n" not in line
  assert "; actual capacity factor 1; mesh replica=8; " in line
  assert "1,438 images of digits; step 6 of 6" in line
  assert "head/kernel" not in caplog.text
  assert train(finished, "--verbose") == 0
  assert "head/kernel" in caplog.text and "a core decodes" in caplog.text
  assert rows_without_timing(finished) == before


def test_evaluate_finds_what_training_found(finished, tmp_path, capsys):
  out = tmp_path / "metrics.json"
  assert main(["evaluate", f"--workdir={finished}", f"--out={out}"]) == 0
  found = json.loads(out.read_text())
  trained = {}
  for row in read_metrics(finished):
    trained |= row
  for name in ("test/accuracy", "test/loss", "fewshot/digits/5shot"):
    np.testing.assert_allclose(found[name], trained[name], rtol=1e-6)
  assert found["step"] == 6 and found["test/examples"] == 359
  assert "test/accuracy" in capsys.readouterr().out


def test_a_metric_that_is_not_a_number_is_null(finished, tmp_path, monkeypatch):
  out = tmp_path / "metrics.json"
  found = {"step": 6, "test/loss": float("nan")}
  monkeypatch.setattr(evaluate_lib, "evaluate", lambda checkpoint, out: found)
  assert main(["evaluate", f"--workdir={finished}", f"--out={out}"]) == 0
  assert json.loads(out.read_text()) == {"step": 6, "test/loss": None}


@pytest.mark.usefixtures("eight_devices")
@pytest.mark.parametrize(
  ("override", "arguments", "message"),
  [
    ("--config.model.fields.width=24", ARGUMENTS, "width: 16 -> 24"),
    ("--config.model.fields.patch_size=3", ARGUMENTS, "patch_size=3"),
    ("--config.train.batch_size=60", ARGUMENTS, "60 images"),
    ("--config.train.colour=1", ARGUMENTS, "unknown name 'colour'"),
    ("--config.seed=x", ARGUMENTS, "seed"),
    ("--config.seed=0", "router=magic", "'magic'"),
    (
      "--config.seed=0",
      "router=softmax_token_choice,k=5",
      "selected_experts=5",
    ),
    (
      "--config.model.moe.options.capacity_factor=0.01",
      ARGUMENTS,
      "capacity_factor=0.01",
    ),
    ("--config.data.name=cifar1000", ARGUMENTS, "cifar1000"),
  ],
)
def test_bad_input_leaves_the_workdir_unharmed(
  finished, override, arguments, message, capsys
):
  before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
  assert train(finished, override, arguments=arguments) == 2
  error = capsys.readouterr().err
  assert "error: " in error and message in error
  assert "Traceback" not in error
  assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


@pytest.mark.parametrize("path", ["", "ftp://host/run"])
def test_a_path_that_is_none_is_refused(path, capsys):
  with pytest.raises(SystemExit) as stop:
    train(path)
  assert stop.value.code == 2
  assert f"argument --workdir: {path!r}: must be" in capsys.readouterr().err


@pytest.mark.usefixtures("eight_devices")
def test_bad_input_makes_no_workdir(tmp_path, capsys):
  assert train(tmp_path / "new", "--config.train.batch_size=60") == 2
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  "command",
  [
    ["train", "--config=configs/none.py", "--workdir=x"],
    ["evaluate", "--workdir=nothing-here"],
    ["report", "nothing-here"],
  ],
)
def test_missing_files_are_clear_errors(command, capsys):
  assert main(command) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ") and "Traceback" not in error


def test_help_lists_the_commands(capsys):
  with pytest.raises(SystemExit) as stop:
    main(["--help"])
  assert stop.value.code == 0
  assert "train" in capsys.readouterr().out


def test_a_run_too_short_for_its_schedule_is_refused_before_its_model_is_built(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.delattr(train_lib, "Model")
  workdir = tmp_path / "work"
  words = ["--config=configs/digits.py", "--config.train.num_epochs=1"]
  assert main(["train", *words, f"--workdir={workdir}"]) == 2
  said = capsys.readouterr().err
  assert "train.schedule.warmup_steps=90 and " in said
  assert "23 steps. Shorten them, as with --config.train.schedule." in said
  assert not workdir.exists()
