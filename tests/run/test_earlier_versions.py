"""Runs of version 0.1.0 open, resume and are reported with the same numbers."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

import vmoe_study
from vmoe_study.checkpoint.load import load_params
from vmoe_study.cli.main import main
from vmoe_study.config import InitializeSpec
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.experiment import Model
from vmoe_study.run.initialize import initial_params
from vmoe_study.run.saved_config import CONFIG_FILE, follow_defaults, upgrade
from vmoe_study.study import results

pytestmark = pytest.mark.cli

RUNS = pathlib.Path(__file__).parents[1] / "data" / "runs_of_version_0.1.0"
TINY = (
  *("model.fields.width=16", "model.fields.depth=2"),
  *("model.fields.mlp_dim=32", "model.fields.num_heads=2"),
  *("model.moe.options.num_experts=4", "model.moe.blocks=(1,)"),
  *("train.num_epochs=3.0", "train.schedule.warmup_steps=5", "train.keep=1"),
)


@pytest.fixture(params=["softmax_token_choice", "soft"])
def run(request, tmp_path):
  """A copy of a workdir."""
  return pathlib.Path(shutil.copytree(RUNS / request.param, tmp_path / "run"))


def _router(workdir):
  config = json.loads((workdir / CONFIG_FILE).read_text())
  return config["model"]["moe"]["router"]


def _config(workdir, *overrides):
  """The config of the README's command."""
  file = f"configs/digits.py:router={_router(workdir)}"
  return vmoe_study.load_config(file, [*TINY, *overrides])


def _expected(workdir, suffix=".json"):
  return json.loads((RUNS / f"{_router(workdir)}{suffix}").read_text())


def test_they_evaluate_to_the_same_metrics(run):
  metrics, expected = vmoe_study.evaluate(run), _expected(run)
  assert metrics.keys() >= expected.keys()
  for name, value in expected.items():
    assert metrics[name] == pytest.approx(value, rel=1e-6), name


def test_their_configs_are_those_of_today(run):
  """Also of a field that had another name."""
  assert "experts_alike" in (run / CONFIG_FILE).read_text()
  workdir_lib.check(run, _config(run).to_dict())
  changed = _config(run, "model.moe.shared_expert_init=True")
  with pytest.raises(ValueError, match="shared_expert_init: False -> True"):
    workdir_lib.check(run, changed.to_dict())


@pytest.mark.parametrize("run", ["softmax_token_choice"], indirect=True)
def test_they_resume_to_the_same_metrics(run):
  path = run / CONFIG_FILE
  longer = path.read_text().replace('"num_epochs": 3.0', '"num_epochs": 4.0')
  path.write_text(longer)
  result = vmoe_study.train(_config(run, "train.num_epochs=4.0"), run)
  metrics = result.metrics
  expected = _expected(run, ".resumed.json")
  assert metrics["step"] == expected["step"] == 90
  assert metrics["test/loss"] == pytest.approx(expected["test/loss"], rel=1e-4)
  # On another machine, some of the 359 images may be classified differently.
  for name in ("test/accuracy", "fewshot/digits/10shot"):
    assert metrics[name] == pytest.approx(expected[name], abs=0.01)


def test_their_cool_down_is_kept():
  """It had no name: the decay went on under it."""
  for steps, expected in ((10, {"cooldown": "multiply"}), (0, {})):
    schedule = {"name": "rsqrt", "cooldown_steps": steps}
    config = {"train": {"schedule": dict(schedule)}}
    assert upgrade(config)["train"]["schedule"] == schedule | expected
    config["train"]["schedule"]["cooldown"] = "freeze"
    assert upgrade(config)["train"]["schedule"]["cooldown"] == "freeze"


def test_their_order_of_examples_is_kept():
  """From an object store, too, where today's default is another order."""
  for folder, expected in (("gs://bucket", {"shuffle": "full"}), (None, {})):
    train = {"num_workers": 0}
    config = follow_defaults({"train": train, "data": {"data_dir": folder}})
    assert config["train"] == {"num_workers": "auto"} | expected
    assert follow_defaults(config) == config
  chosen = {"train": {"num_workers": 0, "shuffle": "auto"}}
  assert follow_defaults(chosen) == chosen


def test_they_are_reported(run, capsys):
  (cell,) = results.load([run])
  (metrics,) = cell.runs.values()
  assert metrics["test/loss"] == pytest.approx(_expected(run)["test/loss"])
  assert cell.config["model"]["moe"]["shared_expert_init"] is False
  assert main(["report", str(run)]) == 0
  assert f"{metrics['test/accuracy']:.1%}"[:-2] in capsys.readouterr().out


@pytest.mark.parametrize("run", ["soft"], indirect=True)
def test_a_run_starts_from_them(run):
  model = Model(_config(run), (8, 8, 1))
  spec = InitializeSpec(kind="checkpoint", path=str(run))
  found = initial_params(spec, model)
  expected = load_params(workdir_lib.checkpoints(run))[0]
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_they_are_exported(run, tmp_path):
  out = tmp_path / "params.npz"
  assert main(["export", f"--workdir={run}", f"--out={out}"]) == 0
  params = load_params(workdir_lib.checkpoints(run))[0]
  with np.load(out) as arrays:
    assert len(arrays.files) == len(jax.tree.leaves(params))
