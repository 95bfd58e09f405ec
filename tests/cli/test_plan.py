"""Resource estimates; libtpu compiles, no TPU is needed."""

import contextlib
import io
import json
import re

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
TIMES = {"compute", "hbm", "interconnect", "network", "exposed", "step"}
UNFIT = ResourceEstimate(
  config="none",
  topology="v5e:4x4",
  slices=1,
  devices=16,
  compiler="none",
  mesh={"replica": 16, "expert": 1},
  fsdp=False,
  remat="none",
  accumulation=1,
  moment_dtype="float32",
  batches_ahead=2,
  plan_form=None,
  capacity_factor=1.0,
  batch_size=1,
  parameters=1,
  active_parameters=1,
  model_flops_per_chip=1.0,
  fits=False,
  hbm_bytes={"total": 2, "capacity": 1},
  host_bytes={"checkpoint": 1, "batches": 1},
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
  assert set(report["step_seconds"]) == TIMES
  memory = report["hbm_bytes"]
  parts = [v for k, v in memory.items() if k not in ("total", "capacity")]
  assert sum(parts) == memory["total"] < memory["capacity"]
  assert memory["capacity"] == 15.75 * 2**30  # XLA keeps the rest of the 16.
  assert report["compiler"].startswith("libtpu 0.")


def test_batches_are_counted_as_they_wait(report):
  memory = report["hbm_bytes"]
  # 64 / 4 images of 8 x 8 bytes, and as many class numbers, in tiles.
  assert memory["batch"] >= 16 * 8 * 8 + 16 * 4
  assert memory["waiting batches"] == 2 * memory["batch"]
  batch = 64 * (8 * 8 + 4)
  assert report["host_bytes"]["batches"] == 5 * batch


def test_one_exchange_in_and_out_per_layer_and_direction(report):
  exchange = report["collectives"]["all-to-all"]
  accumulation, moe_layers = 2, 1
  # Experts are exchanged in one or more equal parts.
  parts = exchange["count"] / (accumulation * moe_layers * 4)
  assert parts in (1, 2, 4)
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


def test_speed_follows_from_the_time_of_a_step(report):
  seconds = report["step_seconds"]
  step = max(seconds["compute"], seconds["hbm"]) + seconds["exposed"]
  assert seconds["step"] == pytest.approx(step)
  assert 0 < seconds["exposed"] <= seconds["interconnect"]
  assert report["images_per_second"] == pytest.approx(64 / step)
  assert report["days"] == pytest.approx(100 * step / 86_400)


def test_not_fitting_is_an_answer(tmp_path, capsys):
  batch = "--config.train.batch_size=4194304"
  report = plan(tmp_path, "--topology=v5e:1x1", batch)
  assert report.keys() >= PROMISED
  assert report["fits"] is False
  memory = report["hbm_bytes"]
  assert memory["total"] > memory["capacity"]
  answer = capsys.readouterr().out
  assert "| no " in answer
  assert "The counted memory does not fit" in answer
  assert "--config.mesh.fsdp=true" in answer


@pytest.fixture(scope="module")
def on_gpus(tmp_path_factory):
  """The report on eight GPUs, and what is printed."""
  options = ["--devices=h200:8", "--config.mesh.expert=8"]
  options.append("--config.model.moe.options.capacity_factor=1.3")
  with contextlib.redirect_stdout(io.StringIO()) as printed:
    report = plan(tmp_path_factory.mktemp("gpus"), *options)
  return report, printed.getvalue()


def test_nothing_is_promised(on_gpus):
  _, answer = on_gpus
  assert "at most" not in answer and "The time of a step is a model" in answer
  assert "none: analytic" in answer


def test_the_actual_capacity_factor_is_shown(on_gpus):
  """16 tokens, 8 experts: 2.6 slots are 3."""
  report, answer = on_gpus
  assert report["capacity_factor"] == 1.5
  assert re.search(r"\| actual capacity factor +\| 1\.5 ", answer)


def test_gpus_by_the_analytic_model(on_gpus):
  report, _ = on_gpus
  assert report.keys() >= PROMISED
  assert report["compiler"] == "none: analytic" and report["devices"] == 8
  assert report["hbm_bytes"]["capacity"] == 141e9
  assert set(report["step_seconds"]) == TIMES
  assert report["collectives"]["all-to-all"]["count"] == 4


@pytest.mark.slow
def test_slices_exchange_gradients_only(tmp_path):
  more = ["--config.mesh.expert=4", "--slices=2"]
  report = plan(tmp_path, "--topology=v5e:2x2", *more)
  assert (report["slices"], report["devices"]) == (2, 8)
  assert report["mesh"] == {"replica": 2, "expert": 4}
  assert report["step_seconds"]["network"] > 0
  # Each way, forward and backward; a device has too few groups for two parts.
  assert report["collectives"]["all-to-all"]["count"] == 4


def test_python_gets_what_the_command_prints(report, monkeypatch):
  estimate = ResourceEstimate(**report)
  monkeypatch.setattr(planning, "estimate_resources", lambda *args: estimate)
  found = planning.plan_run(
    load_config("configs/digits.py"), "v5e:2x2", num_examples=10
  )
  assert found.to_dict() == report


@pytest.mark.slow
def test_a_sweep_recommends_the_fastest(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(planning, "NUM_COMPILED", 2)
  report = plan(tmp_path, "--topology=v5e:1x1", "--sweep")
  candidates = report["candidates"]
  assert {c["plan_form"] for c in candidates} == {"index", "dense"}
  assert len(candidates) == 2
  best = max(candidates, key=lambda c: c["images_per_second"])
  assert report.keys() >= PROMISED
  assert report["plan_form"] == best["plan_form"]
  advice = f"--config.model.moe.options.plan_form={best['plan_form']}"
  assert advice in capsys.readouterr().out


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--topology=v9:2x2"], "v4, v5e, v5p, v6e, tpu7x"),
    (["--topology=v4:2x2x1", "--slices=2"], "is not published"),
    (["--devices=a100:8"], "h100, h200, b200"),
    (["--devices=h100:8", "--sweep"], "are for TPUs"),
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
