"""The moving average of the parameters: kept, evaluated, resumed, sharded."""

import jax
import numpy as np
import pytest

import vmoe_study
from vmoe_study.checkpoint.load import (
  AS_NUMPY,
  absolute,
  load_params,
  read_manifest,
  restore_trees,
)
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.experiment import Model, Training
from vmoe_study.training.metrics_file import read_metrics

pytestmark = pytest.mark.cli

STEPS = 6
DECAY = 0.75
TINY = (
  *("model.fields.width=16", "model.fields.depth=2", "model.fields.mlp_dim=32"),
  *("model.fields.num_heads=2", "model.moe.options.num_experts=4"),
  *("train.num_epochs=0.0", f"train.num_steps={STEPS}", "train.keep=10"),
  *("train.schedule.warmup_steps=0", "train.report_every=3"),
  *("train.save_every=1", "fewshot={}"),
)


def _config(*overrides):
  return vmoe_study.load_config(
    "configs/digits.py:router=softmax_token_choice", [*TINY, *overrides]
  )


def _arrays(workdir, step, *items):
  directory = absolute(workdir_lib.checkpoints(workdir))
  return restore_trees(directory, step, dict.fromkeys(items, AS_NUMPY))[1]


def _fingerprints(workdir):
  """Of every array of the last checkpoint, by item."""
  path = absolute(workdir_lib.checkpoints(workdir)) / str(STEPS)
  return read_manifest(path)["items"]


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
  """A finished run that has every checkpoint."""
  workdir = tmp_path_factory.mktemp("averaged")
  vmoe_study.train(_config(f"train.ema_decay={DECAY}"), workdir)
  return workdir


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """The same run without an average."""
  workdir = tmp_path_factory.mktemp("plain")
  vmoe_study.train(_config(), workdir)
  return workdir


def test_it_is_the_average_of_the_parameters_of_all_steps(averaged):
  config = _config()
  average = jax.device_get(Model(config, (8, 8, 1)).init())
  for step in range(1, STEPS + 1):
    found = _arrays(averaged, step, "params", "ema")
    average = jax.tree.map(
      lambda a, p: DECAY * a + (1 - DECAY) * p, average, found["params"]
    )
    jax.tree.map(
      lambda a, e: np.testing.assert_allclose(e, a, rtol=1e-5, atol=1e-7),
      average,
      found["ema"],
    )


def test_training_and_its_checkpoints_are_those_without_it(averaged, plain):
  own, others = _fingerprints(averaged), _fingerprints(plain)
  assert own.keys() - others.keys() == {"ema"}
  assert {item: own[item] for item in others} == others
  step = absolute(workdir_lib.checkpoints(plain)) / str(STEPS)
  assert not (step / "ema").exists()


def test_it_is_what_the_run_is_evaluated_with(averaged, plain):
  average = _arrays(averaged, STEPS, "ema")["ema"]
  checkpoint = vmoe_study.open_checkpoint(averaged)
  exported = load_params(workdir_lib.checkpoints(averaged))[0]
  for found in (jax.device_get(checkpoint.params), exported):
    jax.tree.map(np.testing.assert_array_equal, found, average)
  evaluated = vmoe_study.evaluate(checkpoint)["test/loss"]
  *_, written = read_metrics(averaged)
  *_, without = read_metrics(plain)
  assert evaluated == pytest.approx(written["test/loss"])
  assert evaluated != pytest.approx(without["test/loss"])


@pytest.mark.usefixtures("eight_devices")
def test_it_is_sharded_like_the_parameters():
  mesh = ("mesh.expert=4", "mesh.fsdp=True")
  config = _config(f"train.ema_decay={DECAY}", *mesh)
  training = Training(Model(config, (8, 8, 1)), 100)
  state = training.init()
  jax.tree.map(
    lambda p, e: np.testing.assert_equal(e.sharding.spec, p.sharding.spec),
    state.params,
    state.ema,
  )
  buffers = {x.unsafe_buffer_pointer() for x in _first_shards(state)}
  assert len(buffers) == len(list(_first_shards(state)))  # Copies.


def _first_shards(state):
  for tree in (state.params, state.ema):
    for leaf in jax.tree.leaves(tree):
      yield leaf.addressable_shards[0].data


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decays_outside_their_domain(decay):
  with pytest.raises(ValueError, match=r"train: ema_decay=.* in \[0, 1\)"):
    _config(f"train.ema_decay={decay}")
