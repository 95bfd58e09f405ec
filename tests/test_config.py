"""The door: what a config may say, and what it is told."""

import copy

import pytest

from configs import digits
from vmoe_study.config import check_batches, parse

VALUES = digits.get_config("router=softmax_token_choice").to_dict()


def changed(path, value):
  values = copy.deepcopy(VALUES)
  node = values
  *parents, last = path.split(".")
  for name in parents:
    node = node[name]
  node[last] = value
  return values


def test_completing_a_complete_config_changes_nothing():
  assert parse(VALUES).to_dict() == VALUES
  options = VALUES["model"]["moe"]["options"]
  assert options["noise_std"] == 1.0 and options["capacity_rounding"] == "round"
  assert VALUES["model"]["fields"]["dtype"] == "float32"


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("model.moe.router", "sofmax", r"'sofmax'.*Did you mean 'soft.*Valid"),
    ("model.moe.options.num_expert", 4, r"'num_expert'.*Did you mean"),
    ("model.moe.options.num_experts", 4.5, r"num_experts=4\.5.*must be int"),
    ("model.moe.options.num_selected_experts", 9, r"experts=9.*experts=8"),
    ("model.moe.blocks", "every two", r"blocks='every two'"),
    ("model.moe.blocks", (9,), r"selects blocks \[9\]"),
    ("model.fields.wdth", 3, r"'wdth'.*Did you mean 'width'"),
    ("model.fields.width", "64", r"width='64'"),
    ("model.fields.num_classes", 11, r"num_classes=10: must be.*=11"),
    ("model.backbone", "B16", r"backbone='B16'"),
    ("train.num_steps", 100, r"exactly one must be above 0"),
    ("train.loss", "hinge", r"loss='hinge'.*softmax_xent"),
    ("train.optimizer.weight_decay", (("(", 0.1),), r"must be a regular expr"),
    ("train.batch_size", 0, r"batch_size=0"),
    ("evaluations.test.batch_size", 0, r"evaluations\.test: batch_size=0"),
    (
      "evaluations.test.batch_size",
      10**7 + 1,
      r"evaluations\.test: .*batch_size=10000001: must be at most 10,000,000",
    ),
    ("fewshot.digits.batch_size", 10**9, r"fewshot\.digits: .*must be at most"),
    ("fewshot.digits.train.num_classes", 10**9, r"train\.num_classes=1000"),
    ("data.ops", "cut(3)", r"cut"),
    ("data.data_dir", "", r"data: data_dir='': must be a path"),
    ("data.data_dir", "ftp://data", r"data_dir='ftp://data'.*gs://"),
    (
      "initialize",
      {"kind": "npz", "path": "gcs2://model"},
      r"initialize: path='gcs2://model'.*gs://",
    ),
    ("seed", -1, r"seed=-1"),
    ("mesh.replica", 0, r"replica=0"),
    ("colour", 1, r"'colour'"),
  ],
)
def test_names_the_field_and_the_rule(path, value, message):
  with pytest.raises(ValueError, match=message):
    parse(changed(path, value))


def test_paths_of_a_config_may_begin_with_the_home_folder(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  config = parse(changed("data.data_dir", "~/data"))
  assert config.data.data_dir == "/home/me/data"
  start = {"kind": "checkpoint", "path": "~/run"}
  assert parse(changed("initialize", start)).initialize.path == "/home/me/run"


@pytest.mark.parametrize("name", ["train", "fewshot", "", "test/val"])
def test_names_of_evaluations_do_not_hide_other_metrics(name):
  evaluations = {name: VALUES["evaluations"]["test"]}
  with pytest.raises(ValueError, match=f"evaluations.{name}: .* Rename it"):
    parse(changed("evaluations", evaluations))


def test_batches_divide_by_devices_and_groups():
  values = changed("model.moe.group_images", 4)
  values["mesh"] = {"replica": 2, "expert": -1}
  check_batches(parse(values), 8)
  values["evaluations"]["test"]["batch_size"] = 100
  with pytest.raises(ValueError, match=r"evaluations\.test.*= 32.*128"):
    check_batches(parse(values), 8)


def test_experts_divide_by_the_mesh_axis():
  config = parse(changed("mesh.expert", 3))
  with pytest.raises(ValueError, match=r"num_experts=8.*mesh\.expert=3"):
    check_batches(config, 3)


def test_epochs_become_steps():
  config = parse(VALUES)
  assert config.train.total_steps(1438) == -(-80 * 1438 // 64)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ("ruter=soft", "ruter"),
    ("capacity=much", "capacity='much'"),
    ("batch_priority=1", "batch_priority='1'"),
    ("router", "NAME=VALUE"),
  ],
)
def test_config_arguments(arguments, message):
  with pytest.raises(ValueError, match=message):
    digits.get_config(arguments)
