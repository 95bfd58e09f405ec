"""Statistics of routing on numbers that can be counted by hand."""

import json
import math

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from vmoe_study.inspection import statistics
from vmoe_study.inspection.content import (
  ContentStatistics,
  PatchRouting,
  content_statistics,
)
from vmoe_study.inspection.measure import ImageRouting

# Two images of three tokens, two experts with two slots per image.
ROUTING = ImageRouting(
  dispatched=np.array([[2.0, 1.0], [0.0, 1.0]]),
  combined=np.array([[0.6, 0.2], [0.0, 0.7]]),
  tokens_by_experts=np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0]]),
  entropy=np.array([1.2, 0.6]),
)
# Background in column 0, content in column 1.
PATCHES = PatchRouting(
  patches=np.array([[1.0, 2.0], [2.0, 1.0]]),
  dispatched=np.array([[0.0, 3.0], [0.0, 1.0]]),
  unprocessed=np.array([[1.0, 0.0], [2.0, 0.0]]),
)
LABELS = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


@pytest.fixture(scope="module")
def layer():
  return statistics.layer_statistics(
    ROUTING,
    PATCHES,
    LABELS,
    slots_per_image=2,
    correct=np.array([1.0, 1.0]),
    without=np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
  )


def test_layer_statistics(layer):
  np.testing.assert_allclose(layer.load, [1, 1])
  np.testing.assert_allclose(layer.combine_weight, [0.6 / 6, 0.9 / 6])
  assert layer.unprocessed == 3 / 6
  np.testing.assert_allclose(layer.experts_per_token, [3 / 6, 2 / 6, 1 / 6])
  assert layer.router_entropy == pytest.approx(1.8 / 6)
  assert layer.load_entropy == pytest.approx(math.log(2))
  np.testing.assert_allclose(layer.slot_use, [2 / 4, 2 / 4])
  expected = [[0, 1], [0.75, 0.25], [np.nan, np.nan]]
  np.testing.assert_allclose(layer.class_by_expert, expected)
  assert [drop.mean for drop in layer.accuracy_drop] == [0, 0.5]
  assert layer.accuracy_drop_all.mean == 1
  assert layer.content == ContentStatistics(0.5, 1.0, 0.0, 1.0)


def test_images_without_background_have_no_share_of_it():
  zeros = np.zeros((2, 2))
  patches = PatchRouting(np.array([[0.0, 3.0], [0.0, 3.0]]), zeros, zeros)
  found = content_statistics(patches)
  assert (found.patches, found.unprocessed_content) == (1, 0)
  assert math.isnan(found.dispatched) and math.isnan(
    found.unprocessed_background
  )


def test_a_layer_that_nobody_uses():
  nothing = np.zeros((2, 2))
  routing = ROUTING._replace(dispatched=nothing, combined=nothing)
  correct = np.ones(2)
  layer = statistics.layer_statistics(
    routing, PATCHES, LABELS, 2, correct, np.ones((2, 3))
  )
  assert layer.load_entropy == layer.mutual_information == 0
  np.testing.assert_array_equal(layer.load, 0)


def test_entropy_is_that_of_scipy():
  weights = np.random.default_rng(0).gamma(1, size=7)
  assert statistics.entropy(weights) == pytest.approx(entropy(weights))


@pytest.mark.parametrize("seed", range(3))
def test_mutual_information_is_that_of_scikit_learn(seed):
  table = np.random.default_rng(seed).integers(0, 9, (4, 6))
  expected = mutual_info_score(None, None, contingency=table)
  assert statistics.mutual_information(table) == pytest.approx(expected)


def test_mutual_information_of_known_cases():
  independent = np.outer([1.0, 2, 3], [4.0, 1])
  assert statistics.mutual_information(independent) == pytest.approx(0)
  known = statistics.mutual_information(5 * np.eye(8))
  assert known == pytest.approx(math.log(8))


def test_experts_that_take_the_same_of_every_image_still_tell_classes():
  """Expert choice in groups of one image; the information, by a plain loop."""
  rng = np.random.default_rng(0)
  classes = np.arange(60) % 3
  returned = rng.uniform(0.1, 1, (3, 4))[classes] * rng.uniform(1, 2, (60, 4))
  routing = ImageRouting(
    dispatched=np.full((60, 4), 2.0),
    combined=returned,
    tokens_by_experts=np.ones((60, 5)),
    entropy=np.ones(60),
  )
  layer = statistics.layer_statistics(
    routing, PATCHES, np.eye(3)[classes], 2, np.ones(60), np.ones((60, 5))
  )
  expected, total = 0.0, returned.sum()
  for label in range(3):
    of_class = returned[classes == label]
    for expert in range(4):
      joint = of_class[:, expert].sum() / total
      product = of_class.sum() / total * returned[:, expert].sum() / total
      expected += joint * math.log(joint / product)
  assert layer.mutual_information == pytest.approx(expected)
  assert layer.mutual_information > 3 * layer.shuffled_information > 0


def test_shuffling_tells_chance_from_information():
  labels = np.eye(4)[np.arange(200) % 4]
  routing = ImageRouting(
    dispatched=3 * labels,
    combined=labels,
    tokens_by_experts=np.ones((200, 5)),
    entropy=np.ones(200),
  )
  args = routing, PATCHES, labels, 2, np.ones(200), np.ones((200, 5))
  layer = statistics.layer_statistics(*args)
  assert layer.mutual_information == pytest.approx(math.log(4))
  # By chance about (T - 1)(E - 1) / 2N, as N images are the sample.
  assert layer.shuffled_information == pytest.approx(9 / 400, rel=0.5)
  again = statistics.layer_statistics(*args)
  assert again.shuffled_information == layer.shuffled_information


def test_json_has_no_nan(layer):
  text = json.dumps(statistics.jsonable({"x": [layer]}), allow_nan=False)
  found = json.loads(text)["x"][0]
  assert found["class_by_expert"][2] == [None, None]
  assert found["accuracy_drop"][1]["mean"] == 0.5
