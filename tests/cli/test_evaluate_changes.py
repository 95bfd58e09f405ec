"""`evaluate` with a config that differs from the one of training."""

import copy
import dataclasses
import functools
import json
import pathlib

import cv2
import jax
import numpy as np
import optax
import pytest

from configs import digits, pretrain
from vmoe_study.checkpoint.load import load_metadata, load_params
from vmoe_study.cli.main import main
from vmoe_study.config import check_batches, fit_to_devices, parse
from vmoe_study.data.pipeline import eval_input
from vmoe_study.data.spec import DataSpec
from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.vit import VisionTransformer
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.config_file import load_config
from vmoe_study.run.experiment import Model
from vmoe_study.training.metrics_file import read_metrics

SAMPLES = pathlib.Path(__file__).parents[1] / "data/reference/vmoe_checkpoint"
QUICK = ["--config.fewshot={}"]


@pytest.fixture(scope="module")
def measure(trained, tmp_path_factory):
  """Runs `evaluate` with overrides and returns the metrics it wrote."""
  out = tmp_path_factory.mktemp("out") / "new" / "metrics.json"

  @functools.cache
  def measure(*overrides):
    arguments = [f"--workdir={trained}", f"--out={out}", *QUICK, *overrides]
    assert main(["evaluate", *arguments]) == 0
    return json.loads(out.read_text())

  return measure


@functools.cache
def loss_at(workdir, factor):
  """Mean test loss, from the parameters alone."""
  params, metadata, _ = load_params(workdir_lib.checkpoints(workdir))
  model = metadata["config"]["model"]
  moe = copy.deepcopy(model["moe"])
  moe["options"]["capacity_factor"] = factor
  module = VisionTransformer(**model["fields"], moe=MoeOptions(**moe))
  data = DataSpec(**metadata["config"]["evaluations"]["test"]["data"])
  images = eval_input(data, batch_size=359)
  [batch] = map(images.device_ops, images)
  logits, _ = jax.jit(module.apply)({"params": params}, batch["image"])
  return optax.softmax_cross_entropy(logits, batch["label"]).mean()


def test_a_run_is_evaluated_at_its_evaluation_capacity(trained, measure):
  expected = loss_at(trained, 0.5)
  found = [
    row["test/loss"] for row in read_metrics(trained) if "test/loss" in row
  ]
  np.testing.assert_allclose(found[-1], expected, rtol=1e-5)
  np.testing.assert_allclose(measure()["test/loss"], expected, rtol=1e-5)


@pytest.mark.parametrize(
  ("factor", "overrides"),
  [
    (2.0, ["--config.evaluation_capacity=2"]),
    (
      2.0,
      [
        "--config.evaluation_capacity=0",
        "--config.model.moe.options.capacity_factor=2.0",
      ],
    ),
  ],
)
def test_capacity_is_free_to_change(trained, measure, factor, overrides):
  found = measure("--config.evaluations.test.batch_size=60", *overrides)
  expected = loss_at(trained, factor)
  np.testing.assert_allclose(found["test/loss"], expected, rtol=1e-5)
  assert found["test/examples"] == 359
  assert abs(expected - loss_at(trained, 0.5)) > 1e-4 * expected


def test_groups_are_free_to_change(measure):
  alone, together = measure(), measure("--config.model.moe.group_images=8")
  assert alone["test/loss"] != together["test/loss"]


@pytest.mark.usefixtures("eight_devices")
def test_images_of_any_size_will_do_without_learned_positions(trained):
  metadata, _ = load_metadata(workdir_lib.checkpoints(trained))
  config = parse(metadata["config"])
  for posemb in ("learned", "sincos2d"):
    fields = {**config.model.fields, "posemb": posemb}
    spec = dataclasses.replace(config.model, fields=fields)
    model = Model(dataclasses.replace(config, model=spec), (8, 8, 1))
    wrong = [(8, 8, 3)]
    if posemb == "learned":
      wrong.append((16, 16, 1))
    else:
      model.check_images("data", (16, 16, 1))
    for shape in wrong:
      with pytest.raises(ValueError, match="data: its images are"):
        model.check_images("data", shape)


def test_a_router_of_the_same_options_can_be_swapped():
  router = "model.moe.router"
  other = "sinkhorn_expert_choice"
  swapped = load_config("configs/digits.py", [f"{router}={other}"])
  assert swapped.model.moe.router == other
  with pytest.raises(ValueError, match=r"noise_std=1.0.*py:router=soft"):
    load_config("configs/digits.py", [f"{router}=soft"])


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("--config.model.fields.width=32", "float32[16] in the checkpoint"),
    ("--config.model.fields.wdth=32", "Did you mean 'width'?"),
    ("--config.evaluation_capacity=-1", "evaluation_capacity=-1.0"),
    ("--config.evaluations={}", "must not be empty"),
    ("--config=configs/none.py", "no file configs/none.py"),
    (
      "--config.evaluations.test.data.ops=resize(16)|value_range(-1, 1)",
      "evaluations.test.data: its images are 16 x 16 x 1",
    ),
    (
      "--config.evaluations.test.data.ops=resize(9)|value_range(-1, 1)",
      "patch_size=2: must divide the image size 9 x 9",
    ),
    (
      "--config.model.moe.router=sinkhorn_token_choice",
      "noisy_weights=True among them. Choose the router by the argument",
    ),
  ],
)
def test_what_cannot_change_is_explained(trained, override, message, capsys):
  assert main(["evaluate", f"--workdir={trained}", *QUICK, override]) == 2
  error = capsys.readouterr().err
  assert message in error and "Traceback" not in error


def test_only_sparse_routers_have_an_evaluation_capacity():
  for router in ("dense", "soft"):
    values = digits.get_config(f"router={router}").to_dict()
    values["evaluation_capacity"] = 2.0
    with pytest.raises(ValueError, match=f"must be 0 with router '{router}'"):
      parse(values)


def test_vmoe_on_imagenet_is_evaluated_at_capacity_4():
  def capacity(arguments):
    return pretrain.get_config(arguments).evaluation_capacity

  token_choice = "router=softmax_token_choice,data=imagenet1k"
  assert capacity(token_choice) == 4
  assert capacity(f"{token_choice},recipe=softmoe") == 0
  assert capacity("router=softmax_token_choice,data=jft") == 0
  assert capacity("router=softmax_expert_choice,data=imagenet1k") == 0


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("mesh", [(-1, 4), (2, -1), (-1, 1)])
@pytest.mark.parametrize("devices", [1, 3, 8, 64])
def test_any_number_of_devices_will_do(mesh, devices, group):
  values = digits.get_config(f"group={group}").to_dict()
  values["mesh"] = {"replica": mesh[0], "expert": mesh[1]}
  config = fit_to_devices(parse(values), devices)
  check_batches(config, devices)
  wanted = 8 if mesh[1] == -1 else mesh[1]
  assert config.mesh.shape(devices)["expert"] == np.gcd(wanted, devices)
  assert config.evaluations["test"].batch_size >= 128


CONFIG = """
from ml_collections import config_dict

def get_config():
  moe = {"router": "softmax_token_choice", "options": {"num_experts": 4}}
  fields = {"num_classes": 10, "patch_size": 8, "width": 32, "depth": 4,
            "mlp_dim": 64, "num_heads": 4}
  data = {"name": "image_folder", "data_dir": "FOLDER", "split": "test",
          "num_classes": 10, "ops": "value_range(-1, 1)"}
  test = {"data": data, "batch_size": 16}
  return config_dict.ConfigDict({
    "name": "imported", "model": {"fields": fields, "moe": moe}, "data": data,
    "train": {"batch_size": 8, "num_steps": 1}, "evaluations": {"test": test}})
"""


def test_an_imported_checkpoint_needs_a_config(tmp_path, capsys):
  rng = np.random.default_rng(0)
  for label in range(10):
    folder = tmp_path / "images" / "test" / str(label)
    folder.mkdir(parents=True)
    for i in range(2):
      image = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
      cv2.imwrite(str(folder / f"{i}.png"), image)
  text = CONFIG.replace("FOLDER", str(tmp_path / "images"))
  (tmp_path / "config.py").write_text(text)
  workdir = f"--workdir={tmp_path / 'work'}"
  prefix = SAMPLES / "vmoe_v1"
  out = f"--out={tmp_path / 'work'}"
  assert main(["import-vmoe", f"--prefix={prefix}", out]) == 0
  assert main(["evaluate", workdir]) == 2
  assert "imported without a config" in capsys.readouterr().err
  config = f"--config={tmp_path / 'config.py'}"
  assert main(["evaluate", workdir, config]) == 0
  table = capsys.readouterr().out
  assert "| test/examples " in table and " 20 |" in table
