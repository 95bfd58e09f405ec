"""Inspections of models that are not trained."""

import pytest
from etils import epath

from configs import digits
from vmoe_study.config import parse
from vmoe_study.inspection.effects import at_capacities
from vmoe_study.inspection.images import EvaluationImages
from vmoe_study.inspection.inspect import inspect
from vmoe_study.run.checkpoint import Checkpoint
from vmoe_study.run.experiment import Model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _data(digits_folder):
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TFDS_DATA_DIR", str(digits_folder))
    yield


def make_model(arguments):
  values = digits.get_config(arguments).to_dict()
  values["model"]["fields"] |= {"depth": 2, "width": 16}
  return Model(parse(values), (8, 8, 1))


def test_a_dense_model_has_its_accuracy_and_no_pictures(tmp_path):
  model = make_model("router=dense")
  checkpoint = Checkpoint(epath.Path(tmp_path), 0, model.init(), {}, model)
  inspection = inspect(checkpoint, num_images=16, num_shown=2)
  assert inspection.num_images == 16 and inspection.accuracy.count == 16
  assert not inspection.layers and not inspection.capacities
  assert inspection.figures() == {}


@pytest.mark.usefixtures("eight_devices")
def test_images_make_up_whole_groups():
  images = EvaluationImages(make_model("group=8"), {})
  batches = list(images.batches(17))
  assert sum(batch["mask"].sum() for batch in batches) == 24
  assert len(batches) == 1 and len(batches[0]["mask"]) == 64
  everything = list(images.batches(10_000))
  assert sum(batch["mask"].sum() for batch in everything) == 352


def test_slots_of_soft_moe_stay():
  assert at_capacities(make_model("router=soft"), [1.0]) == ({}, [])
