"""The state of routers: in checkpoints, evaluation and fine-tuning."""

import shutil

import jax
import numpy as np
import pytest

import vmoe_study
from vmoe_study.checkpoint.load import (
  AS_NUMPY,
  absolute,
  load_shapes,
  restore_trees,
)
from vmoe_study.run import workdir as workdir_lib

pytestmark = pytest.mark.cli

STEPS = 6
TINY = (
  *("model.fields.width=16", "model.fields.depth=2", "model.fields.mlp_dim=32"),
  *("model.fields.num_heads=2", "model.moe.options.num_experts=4"),
  *("train.num_epochs=0.0", f"train.num_steps={STEPS}"),
  *("train.schedule.warmup_steps=2", "train.report_every=3"),
  *("evaluations={}", "fewshot={}"),
)


def _config(router, *overrides):
  file = f"configs/digits.py:router={router}"
  return vmoe_study.load_config(file, [*TINY, *overrides])


def _arrays(workdir, step):
  directory = absolute(workdir_lib.checkpoints(workdir))
  items = ("params", "router_state")
  saved = {i: AS_NUMPY for i in items if load_shapes(directory, i)[0]}
  return restore_trees(directory, step, saved)[1]


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
  """A finished run of a router with a bias that every step moves."""
  workdir = tmp_path_factory.mktemp("biased")
  vmoe_study.train(_config("bias_adjusted_token_choice"), workdir)
  return workdir


def test_it_is_an_item_of_checkpoints_but_not_of_the_optimizer(biased):
  state = _arrays(biased, STEPS)["router_state"]
  bias = state["Encoder"]["encoderblock_1"]["Moe"]["Router"]["bias"]
  assert bias.shape == (4,)
  # Every step moves it by 0.001 in either direction, or not at all.
  steps = np.round(bias * 1e3)
  np.testing.assert_allclose(bias * 1e3, steps, atol=1e-3)
  assert np.any(steps) and np.abs(steps).max() <= STEPS
  for item in ("params", "opt_state"):
    shapes, _ = load_shapes(workdir_lib.checkpoints(biased), item)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    paths = [jax.tree_util.keystr(path) for path, _ in leaves]
    assert not [p for p in paths if "'Router'" in p and "'bias'" in p]


@pytest.mark.slow
@pytest.mark.parametrize("router", ["relu", "random"])
def test_other_states_and_random_routing_resume_exactly(router, tmp_path):
  """Other routers have no state, as random routing: they save none."""
  config = _config(router, "train.save_every=3")
  vmoe_study.train(config, tmp_path / "run")
  expected = _arrays(tmp_path / "run", STEPS)
  directory = absolute(workdir_lib.checkpoints(tmp_path / "run"))
  assert ("router_state" in expected) == (router != "random")
  shutil.rmtree(directory / str(STEPS))
  vmoe_study.train(config, tmp_path / "run")
  found = _arrays(tmp_path / "run", STEPS)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_evaluation_uses_it_and_leaves_it(biased):
  checkpoint = vmoe_study.open_checkpoint(biased)
  images = np.random.default_rng(0).normal(size=(8, 8, 8, 1))
  images = images.astype(np.float32)
  logits = checkpoint.apply(images)
  np.testing.assert_array_equal(logits, checkpoint.apply(images))
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.device_get(checkpoint.router_state),
    _arrays(biased, STEPS)["router_state"],
  )
  state = jax.tree.map(np.array, jax.device_get(checkpoint.router_state))
  state["Encoder"]["encoderblock_1"]["Moe"]["Router"]["bias"][0] = 10.0
  forced = checkpoint.model.predict(
    {"params": checkpoint.params, "router_state": state}, images
  )
  # The head starts at zero: six steps make outputs that differ.
  assert np.any(np.asarray(forced) != logits)


def test_a_run_starts_from_it(biased, tmp_path):
  start = ("initialize.kind=checkpoint", f"initialize.path={biased}")
  rate = "model.moe.options.bias_update_rate=0.0"
  config = _config("bias_adjusted_token_choice", *start, rate)
  vmoe_study.train(config, tmp_path / "run")
  jax.tree.map(
    np.testing.assert_array_equal,
    _arrays(tmp_path / "run", STEPS)["router_state"],
    _arrays(biased, STEPS)["router_state"],
  )
