"""Predictions, and the losses that they belong to."""

import numpy as np

from vmoe_study.run.predict import PROBABILITIES, Prediction
from vmoe_study.training.loss import LOSSES


def test_every_loss_has_probabilities():
  assert PROBABILITIES.keys() == LOSSES.keys()


def test_the_most_probable_classes_come_first():
  shares = np.float32([0.25, 0.5, 0.25])
  prediction = Prediction("a.png", shares, ["cat", "dog", "2"])
  assert prediction.top(2) == [("dog", 0.5), ("cat", 0.25)]
  assert len(prediction.top()) == 3
