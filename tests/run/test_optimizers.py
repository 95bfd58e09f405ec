"""Optimizers of Optax in whole runs: sharded statistics, resuming, decay."""

import shutil

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import vmoe_study
from vmoe_study.checkpoint.load import absolute, read_manifest
from vmoe_study.checkpoint.tree import flatten
from vmoe_study.parallel.mesh import make_mesh
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.config_file import override_config
from vmoe_study.run.experiment import Model, Training

pytestmark = [pytest.mark.cli, pytest.mark.eight_devices]

STEPS = 4
TINY = (
  *("model.fields.width=16", "model.fields.depth=2", "model.fields.mlp_dim=32"),
  *("model.fields.num_heads=2", "model.moe.options.num_experts=4"),
  *("train.num_epochs=0.0", f"train.num_steps={STEPS}"),
  *("train.schedule.warmup_steps=0", "train.schedule.peak=0.001"),
  *("train.save_every=2", "mesh.expert=4", "evaluations={}", "fewshot={}"),
)
ADAFACTOR = (
  "train.optimizer.name=adafactor",
  "train.optimizer.arguments={'min_dim_size_to_factor': 16, 'momentum': 0.9}",
)
LION = ("train.optimizer.name=lion", "train.ema_decay=0.5")
EXPERTS = "Encoder/encoderblock_1/Moe/Mlp/Dense_0"


def _config(*overrides):
  return vmoe_study.load_config(
    "configs/digits.py:router=bias_adjusted_token_choice", [*TINY, *overrides]
  )


def _training(*overrides, devices=None):
  config = _config(*overrides)
  mesh = devices and make_mesh(config.mesh, devices)
  return Training(Model(config, (8, 8, 1), mesh), 100)


def _batch(size):
  random = np.random.default_rng(0)
  return {
    "image": random.integers(0, 256, (size, 8, 8, 1), np.uint8),
    "label": random.integers(0, 10, size).astype(np.int32),
  }


def _specs(state, part):
  return {
    path.partition(f"{part}/")[2]: leaf.sharding.spec
    for path, leaf in flatten(state.opt_state).items()
    if f"/{part}/" in f"/{path}"
  }


@pytest.mark.parametrize("fsdp", [False, True])
def test_statistics_of_experts_stay_with_their_experts(fsdp):
  """Adafactor's for (E, D, F) = (4, 16, 32): rows (E, D), columns (E, F)."""
  state = _training(*ADAFACTOR, f"mesh.fsdp={fsdp}").state_template()
  rows, columns = _specs(state, "v_row"), _specs(state, "v_col")
  whole, momentum = _specs(state, "v"), _specs(state, "ema")
  kernel, bias = f"{EXPERTS}/kernel", f"{EXPERTS}/bias"
  assert rows[kernel][0] == columns[kernel][0] == "expert"
  assert rows[bias] == columns[bias] == whole[kernel] == P()  # Placeholders.
  for path, leaf in flatten(state.params).items():
    assert momentum[path] == leaf.sharding.spec
    if path in (bias, "Encoder/encoderblock_1/Moe/Router/dense/bias"):
      assert whole[path] == leaf.sharding.spec
  if fsdp:
    spec = flatten(state.params)[kernel].sharding.spec
    assert (*rows[kernel], *columns[kernel][1:]) == (*spec, None)[:3]


def test_a_step_on_eight_devices_is_that_on_one():
  """Of the optimizer whose statistics are sums over shards."""
  found = []
  for devices, expert in ((jax.devices(), 4), (jax.devices()[:1], 1)):
    training = _training(*ADAFACTOR, f"mesh.expert={expert}", devices=devices)
    size = training.model.config.train.batch_size
    state, metrics = training.step(training.init(), _batch(size))
    found.append((jax.device_get(state.params), float(metrics["update_norm"])))
  assert found[0][1] == pytest.approx(found[1][1], rel=1e-3)


@pytest.mark.parametrize("optimizer", [ADAFACTOR, LION])
def test_a_resumed_run_ends_with_the_same_state(optimizer, tmp_path):
  """Bit by bit, with decay by path, router state and moving average."""
  workdir, config = tmp_path / "run", _config(*optimizer)
  vmoe_study.train(config, workdir)
  last = absolute(workdir_lib.checkpoints(workdir)) / str(STEPS)
  expected = read_manifest(last)["items"]
  shutil.rmtree(last)
  vmoe_study.train(config, workdir)
  assert read_manifest(last)["items"] == expected
  assert expected["router_state"] and expected["opt_state"]
  assert bool(expected.get("ema")) == (optimizer is LION)


def test_the_saved_config_has_all_arguments():
  arguments = _config(*LION).to_dict()["train"]["optimizer"]["arguments"]
  assert arguments == {"b1": 0.9, "b2": 0.99, "mu_dtype": None}
  changed = override_config(
    _config(*LION), ["train.optimizer.arguments.mu_dtype=bfloat16"]
  )
  assert changed.train.optimizer.arguments["mu_dtype"] == "bfloat16"
