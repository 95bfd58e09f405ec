"""Resource estimates; libtpu compiles, no TPU is needed."""

import json

import pytest

pytest.importorskip("libtpu")

from vmoe_study.cli.main import main
from vmoe_study.performance import plan as planning
from vmoe_study.performance.estimate import ResourceEstimate
from vmoe_study.run.config_file import load_config

TINY = [
  "--config=configs/digits.py",
  "--config.model.fields.depth=2",
  "--config.model.fields.width=32",
  "--config.train.num_epochs=0",
  "--config.train.num_steps=100",
  "--config.train.mixup=0",
]
PROMISED = {
  "fits",
  "hbm_bytes",
  "flops_per_chip",
  "model_flops_per_chip",
  "collectives",
  "step_seconds",
  "images_per_second",
  "parameters",
  "active_parameters",
}
UNFIT = ResourceEstimate(
  config="none",
  topology="v5e:4x4",
  chips=16,
  mesh={"replica": 16, "expert": 1},
  plan_form=None,
  capacity_factor=1.0,
  batch_size=1,
  parameters=1,
  active_parameters=1,
  model_flops_per_chip=1.0,
  fits=False,
  hbm_bytes={"total": 2, "capacity": 1},
)


def plan(tmp_path, *arguments):
  out = tmp_path / "plan.json"
  assert main(["plan", *TINY, f"--out={out}", *arguments]) == 0
  return json.loads(out.read_text())


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  return plan(
    tmp_path_factory.mktemp("plan"),
    "--topology=v5e:2x2",
    "--config.mesh.expert=4",
    "--config.train.accumulation=2",
  )


def test_the_report_holds_what_is_promised(report):
  assert report.keys() >= PROMISED
  assert report["fits"] is True
  assert set(report["step_seconds"]) == {"compute", "hbm", "interconnect"}
  memory = report["hbm_bytes"]
  parts = [v for k, v in memory.items() if k not in ("total", "capacity")]
  assert sum(parts) == memory["total"] < memory["capacity"] == 16 * 2**30


def test_one_exchange_in_and_out_per_layer_and_direction(report):
  exchange = report["collectives"]["all-to-all"]
  accumulation, moe_layers = 2, 1
  assert exchange["count"] == accumulation * moe_layers * 4
  assert "all-gather" not in report["collectives"]


def test_experts_are_shared_out_and_the_optimizer_holds_two_moments(report):
  one_expert = 2 * 32 * 128 + 128 + 32
  others = report["parameters"] - 8 * one_expert
  per_chip = 4 * (others + 2 * one_expert)
  assert report["hbm_bytes"]["parameters"] == per_chip
  counters = report["hbm_bytes"]["optimizer"] - 2 * per_chip
  assert 0 <= counters <= 16


def test_compiled_flops_cover_the_models(report):
  ratio = report["flops_per_chip"] / report["model_flops_per_chip"]
  assert 1 < ratio < 1.5


def test_speed_follows_from_the_slowest_resource(report):
  slowest = max(report["step_seconds"].values())
  assert report["images_per_second"] == pytest.approx(64 / slowest)
  assert report["days"] == pytest.approx(100 * slowest / 86_400)


def test_not_fitting_is_an_answer(tmp_path, capsys):
  batch = "--config.train.batch_size=4194304"
  report = plan(tmp_path, "--topology=v5e:1x1", batch)
  assert report.keys() >= PROMISED
  assert report["fits"] is False
  memory = report["hbm_bytes"]
  assert memory["total"] > memory["capacity"]
  answer = capsys.readouterr().out
  assert "| no " in answer
  assert "--config.mesh.fsdp=true" in answer


def test_python_gets_what_the_command_prints(report, monkeypatch):
  estimate = ResourceEstimate(**report)
  monkeypatch.setattr(planning, "estimate_resources", lambda *args: estimate)
  found = planning.plan_run(
    load_config("configs/digits.py"), "v5e:2x2", num_examples=10
  )
  assert found.to_dict() == report


def test_a_sweep_recommends_the_fastest(tmp_path, capsys):
  report = plan(tmp_path, "--topology=v5e:1x1", "--sweep")
  candidates = report["candidates"]
  assert [c["plan_form"] for c in candidates] == ["index", "dense"]
  best = max(candidates, key=lambda c: c["images_per_second"])
  assert report.keys() >= PROMISED
  assert report["plan_form"] == best["plan_form"]
  advice = f"--config.model.moe.options.plan_form={best['plan_form']}"
  assert advice in capsys.readouterr().out


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--topology=v9:2x2"], "v4, v5e, v5p, v6e"),
    (["--topology=v5e:3x3"], "1x1, 2x2, 2x4"),
    (["--topology=v5e:2x2", "--config.mesh.expert=3"], "devices"),
    (["--topology=v5e:2x2", "--image-shape=8x8"], "224x224x3"),
  ],
)
def test_what_cannot_be_is_said(arguments, message, capsys):
  assert main(["plan", *TINY, *arguments]) == 2
  assert message in capsys.readouterr().err


def test_images_are_as_the_operations_leave_them(monkeypatch, tmp_path, capsys):
  """No data is prepared, and only counting epochs would need it."""
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  shapes = []
  monkeypatch.setattr(
    planning,
    "estimate_resources",
    lambda *args: shapes.append(args[2:]) or UNFIT,
  )
  config = "--config=configs/pretrain.py:data=imagenet1k,fewshot=none"
  command = ["plan", config, "--topology=v5e:4x4"]
  assert main(command) == 2
  assert "--num-examples" in capsys.readouterr().err
  assert main([*command, "--num-examples=1281167"]) == 0
  assert shapes == [((224, 224, 3), 1281167)]
