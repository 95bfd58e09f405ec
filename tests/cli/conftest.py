"""What the tests of commands share: data, and the files of an evaluation."""

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
def evaluated(trained, tmp_path_factory):
  """The folder that `evaluate` writes for the trained run."""

  def make(folder):
    words = [f"--workdir={trained}", "--trust-data-dirs", f"--out={folder}"]
    with devices.shown(1):
      assert main(["evaluate", *words]) == 0

  return make_once(tmp_path_factory, "evaluated", make)
