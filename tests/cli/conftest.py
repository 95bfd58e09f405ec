"""What the tests of commands share: a data set and a trained run."""

import pytest
from tensorflow_datasets.core import constants as tfds_constants

from vmoe_study.cli.main import main

from .. import devices
from ..shared import make_once


@pytest.fixture(scope="module", autouse=True)
def _data(digits_folder):
  """Commands, and the processes they start, find the digits."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TFDS_DATA_DIR", str(digits_folder))
    patch.setattr(tfds_constants, "DATA_DIR", str(digits_folder))
    yield


@pytest.fixture(scope="session")
def trained(digits_folder, tmp_path_factory):
  """The workdir of a run on eight devices, evaluated at capacity 0.5.

  Nothing may be written to it.
  """
  data = {
    f"--config.{where}.data_dir={digits_folder}"
    for where in (
      "data",
      "evaluations.test.data",
      "fewshot.digits.train",
      "fewshot.digits.test",
    )
  }
  options = [
    "--config=configs/digits.py:router=softmax_token_choice,k=2",
    "--config.model.fields.width=16",
    "--config.model.fields.depth=2",
    "--config.model.fields.mlp_dim=32",
    "--config.model.moe.options.num_experts=4",
    "--config.train.num_epochs=0",
    "--config.train.num_steps=32",
    "--config.train.schedule.warmup_steps=2",
    "--config.train.schedule.peak=0.01",
    "--config.train.report_every=8",
    "--config.shots=(1,)",
    "--config.mesh.expert=4",
    "--config.evaluation_capacity=0.5",
  ]

  def make(workdir):
    with devices.shown(8):
      assert main(["train", f"--workdir={workdir}", *options, *data]) == 0

  return make_once(tmp_path_factory, "trained", make)
