"""What an evaluation would meet is met before the first step."""

import pytest

from vmoe_study.config import Config
from vmoe_study.run.config_file import load_config
from vmoe_study.run.experiment import Model
from vmoe_study.run.inputs import make_evaluators

SHAPE = (8, 8, 1)


@pytest.fixture(autouse=True, scope="module")
def _data(tmp_path_factory):
  """Data sets are built in a folder of the test."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TFDS_DATA_DIR", str(tmp_path_factory.mktemp("data")))
    yield


def config(*overrides) -> Config:
  tiny = ["model.fields.width=16", "model.fields.depth=2"]
  arguments = "configs/digits.py:router=softmax_token_choice"
  return load_config(arguments, [*tiny, *overrides])


def test_a_capacity_that_leaves_no_slot_in_evaluations():
  Model(config("evaluation_capacity=2.0"), SHAPE)
  with pytest.raises(ValueError) as error:
    Model(config("evaluation_capacity=0.01"), SHAPE)
  assert str(error.value).startswith("evaluation_capacity=0.01: leaves each")
  assert "Raise evaluation_capacity, " in str(error.value)


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("fewshot.digits.train.ops=flip_lr", "must not draw random"),
    ("fewshot.digits.train.split=none", "none"),
    ("fewshot.digits.train.num_classes=5", "num_classes"),
    ("fewshot.digits.test.num_classes=5", "num_classes"),
    ("fewshot.digits.train.ops=resize(9)", "patch_size"),
    ("evaluations.test.data.ops=resize(9)", "patch_size"),
  ],
)
def test_data_that_cannot_be_evaluated(override, message):
  model = Model(config(override), SHAPE)
  with pytest.raises(ValueError, match=message) as error:
    make_evaluators(model)
  field = override.partition("=")[0].rpartition(".")[0]
  assert str(error.value).startswith(f"{field}: ")
