"""Pictures of routing in TensorBoard, of a run that trains."""

import functools

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)
from tensorboard.util import tensor_util

import vmoe_study
from vmoe_study.inspection.observe import RoutingPictures

pytestmark = pytest.mark.cli

TINY = (
  *("model.fields.width=16", "model.fields.depth=2", "model.fields.mlp_dim=32"),
  *("model.fields.num_heads=2", "train.num_epochs=0.0", "train.num_steps=4"),
  *("train.schedule.warmup_steps=0", "train.report_every=2", "fewshot={}"),
  "train.evaluate_every=2",
)
OBSERVERS = [functools.partial(RoutingPictures, num_images=3)]


def test_a_run_shows_patches_weights_and_loads(tmp_path):
  options = "model.moe.options.num_experts=4"
  config = vmoe_study.load_config(
    "configs/digits.py:router=softmax_token_choice,k=1", [*TINY, options]
  )
  result = vmoe_study.train(config, tmp_path, observers=OBSERVERS)
  assert 0 <= result.metrics["train/precision_at_1"] <= 1
  events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
  events.Reload()

  def steps_and_last(tag):
    found = events.Tensors(tag)
    last = tensor_util.make_ndarray(found[-1].tensor_proto)
    return [event.step for event in found], last

  steps, (width, height, encoded) = steps_and_last("routing/patches")
  picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
  assert steps == [2, 4]
  assert picture.shape == (int(height), int(width), 3) and picture.std() > 0
  layer = "routing/encoderblock_1"
  steps, load = steps_and_last(f"train/{layer}/load")
  assert steps == [2, 4] and load[:, 2].sum() == 4  # Experts.
  steps, weights = steps_and_last(f"{layer}/combine_weights")
  assert steps == [2, 4] and 0 < weights[0, 0] <= weights[-1, 1] <= 1
  assert weights[:, 2].sum() > 3  # Tokens of three images.
  assert "config" in events.PluginTagToContent("text")


def test_a_model_without_routers_is_refused(tmp_path):
  config = vmoe_study.load_config("configs/digits.py:router=dense", TINY)
  with pytest.raises(ValueError, match="Leave --pictures out"):
    vmoe_study.train(config, tmp_path / "run", observers=OBSERVERS)
  assert not (tmp_path / "run").exists()
