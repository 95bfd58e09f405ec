"""What an evaluation finds agrees with scikit-learn, SciPy and plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
from sklearn import metrics

from vmoe_study.evaluation.calibration import Calibration
from vmoe_study.evaluation.charts import MAX_NAMED, figures
from vmoe_study.evaluation.classification import ClassificationEvaluator
from vmoe_study.evaluation.confusion import Confusion
from vmoe_study.evaluation.intervals import wilson
from vmoe_study.evaluation.tables import tables
from vmoe_study.training.loss import sigmoid_xent, softmax_xent

IMAGES, NAMES = 203, ["ant", "bee", "cat", "dog", "eel", "fox"]
RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 5, IMAGES)  # No fox.
LOGITS = RNG.normal(size=(IMAGES, 6)).astype(np.float32)
LOGITS[np.arange(IMAGES), LABEL] += 1.5
PROBABILITIES = scipy.special.softmax(LOGITS, axis=1)
PREDICTED = LOGITS.argmax(1)
SEVERAL = np.eye(6, dtype=np.float32)[LABEL]
SEVERAL[::3, 2] = SEVERAL[1::4, 0] = 1


def examine(labels, loss, probabilities, size=16, **options):
  """Images in batches that come in another order, with padding in the last."""

  def batches():
    for start in reversed(range(0, IMAGES, size)):
      rows = np.arange(start, start + size)
      real = rows < IMAGES
      yield {
        "image": jnp.asarray(np.where(real[:, None], LOGITS[rows % IMAGES], 9)),
        "label": jnp.asarray(labels[rows % IMAGES]),
        "mask": jnp.asarray(real.astype(np.float32)),
        "index": jnp.asarray(rows),
      }

  evaluator = ClassificationEvaluator(
    "test", lambda _, x: x, batches, loss, probabilities, NAMES, **options
  )
  return evaluator.predict_all({})


@pytest.fixture(scope="module")
def found():
  """One label per image."""
  labels = np.eye(6, dtype=np.float32)[LABEL]
  return examine(labels, softmax_xent, jax.nn.softmax)


@pytest.fixture(scope="module")
def several():
  """Several labels of some images."""
  return examine(SEVERAL, sigmoid_xent, jax.nn.sigmoid, keep_scores=True)


def test_scalars_are_those_of_scikit_learn(found):
  got = found.metrics()
  hits = int(np.sum(PREDICTED == LABEL))
  ends = scipy.stats.binomtest(hits, IMAGES).proportion_ci(method="wilson")
  expected = {
    "test/accuracy": metrics.accuracy_score(LABEL, PREDICTED),
    "test/accuracy_low": ends.low,
    "test/accuracy_high": ends.high,
    "test/loss": metrics.log_loss(LABEL, PROBABILITIES, labels=range(6)),
    "test/brier": metrics.brier_score_loss(
      LABEL, PROBABILITIES, labels=range(6), scale_by_half=False
    ),
    "test/ece": calibration_error(PROBABILITIES.max(1), PREDICTED == LABEL),
    "test/examples": IMAGES,
  }
  assert got.keys() == expected.keys()
  for name, value in expected.items():
    assert got[name] == pytest.approx(value, rel=1e-5), name


def calibration_error(confidence, correct, bins=15):
  """A plain loop over (lower, upper]."""
  total = 0.0
  for number in range(bins):
    low, high = number / bins, (number + 1) / bins
    inside = (confidence > low) & (confidence <= high)
    if inside.any():
      gap = abs(correct[inside].mean() - confidence[inside].mean())
      total += gap * inside.mean()
  return total


def test_a_confidence_on_an_edge_belongs_to_the_bin_below():
  bins = Calibration.of(np.array([0.0, 0.5, 1.0]), np.array([0, 1, 1]), bins=2)
  assert bins.images.tolist() == [2, 1]
  assert bins.correct.tolist() == [1, 1]
  assert bins.error == pytest.approx((0.5 - 0.25) * 2 / 3)


def test_classes_have_recall_and_precision(found):
  header, rows = tables(found)["classes"]
  columns = dict(zip(header, zip(*rows, strict=True), strict=True))
  precision, recall, _, support = metrics.precision_recall_fscore_support(
    LABEL, PREDICTED, labels=range(6), zero_division=np.nan
  )
  assert columns["class"] == tuple(NAMES)
  assert columns["images"] == tuple(support) and support[5] == 0
  np.testing.assert_allclose(columns["accuracy"], recall)
  np.testing.assert_allclose(columns["precision"], precision)
  for n, images in enumerate(support[:5]):
    hits = int(columns["correct"][n])
    ends = scipy.stats.binomtest(hits, images).proportion_ci(method="wilson")
    assert columns["low"][n] == pytest.approx(ends.low)
    assert columns["high"][n] == pytest.approx(ends.high)
  assert np.isnan([columns[name][5] for name in ("accuracy", "low")]).all()


def test_confused_classes_are_counted(found):
  expected = metrics.confusion_matrix(LABEL, PREDICTED, labels=range(6))
  np.testing.assert_array_equal(found.confusion.matrix(), expected)
  part = np.array([1, 4])
  np.testing.assert_array_equal(
    found.confusion.matrix(part), expected[np.ix_(part, part)]
  )
  pairs = list(found.confusion.pairs())
  wrong = expected - np.diag(np.diag(expected))
  counts = [pair.count for pair in pairs]
  assert counts == sorted(wrong[wrong > 0].tolist(), reverse=True)
  for label, predicted, count, share in pairs:
    assert count == wrong[label, predicted]
    assert share == pytest.approx(count / expected[label].sum())
  header, rows = tables(found)["confusion"]
  assert header == ["class", *NAMES]
  assert [row[1:] for row in rows] == expected.tolist()


def test_mistakes_are_sorted_by_confidence(found):
  wrong = [n for n in range(IMAGES) if PREDICTED[n] != LABEL[n]]
  wrong.sort(key=lambda n: -PROBABILITIES[n].max())
  assert found.index[found.mistakes].tolist() == wrong
  first = found.mistakes[0]
  order = np.argsort(-LOGITS[first])[:3]
  assert found.outcomes.classes[first].tolist() == order.tolist()
  np.testing.assert_allclose(
    found.outcomes.probabilities[first], PROBABILITIES[first][order], rtol=1e-5
  )
  assert found.outcomes.label_probability[first] == pytest.approx(
    PROBABILITIES[first, LABEL[first]], rel=1e-5
  )


def test_several_labels_have_average_precision_and_no_confusion(several):
  got = several.metrics()
  expected = [
    average_precision(SEVERAL[:, n] > 0, LOGITS[:, n]) for n in range(5)
  ]
  np.testing.assert_allclose(several.average_precision[:5], expected)
  assert np.isnan(several.average_precision[5])  # No fox.
  assert got["test/mean_average_precision"] == pytest.approx(np.mean(expected))
  first = SEVERAL[np.arange(IMAGES), PREDICTED]
  assert got["test/accuracy"] == pytest.approx(first.mean())
  sigmoid = scipy.special.expit(LOGITS)
  squares = ((sigmoid - SEVERAL) ** 2).sum(1).mean()
  assert got["test/brier"] == pytest.approx(squares, rel=1e-5)
  assert several.confusion is None
  assert tables(several).keys() == {"calibration", "classes"}
  assert figures(several).keys() == {"calibration"}


def average_precision(positive, scores):
  """The mean over the positive images of the precision down to them."""
  hits = positive[np.argsort(-scores)]
  precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
  return precision[hits].mean()


@pytest.mark.parametrize(
  ("hits", "total"), [(0, 7), (7, 7), (1, 2), (50, 9999)]
)
def test_intervals_are_those_of_scipy(hits, total):
  value, low, high = wilson(hits, total)
  ends = scipy.stats.binomtest(hits, total).proportion_ci(method="wilson")
  assert value == hits / total
  assert (low, high) == pytest.approx((ends.low, ends.high), abs=1e-12)


def test_many_classes_are_drawn_as_blocks_and_those_that_are_confused():
  label = RNG.integers(0, 1000, 5000)
  predicted = np.where(RNG.random(5000) < 0.7, label, (label + 1) % 1000)
  confusion = Confusion.of(label, predicted, 1000)
  full = metrics.confusion_matrix(label, predicted, labels=range(1000))
  blocks = full.reshape(250, 4, 250, 4).sum((1, 3))
  np.testing.assert_array_equal(confusion.blocks(4), blocks)
  shown = confusion.most_confused(MAX_NAMED)
  pair = next(confusion.pairs())
  assert {pair.label, pair.predicted} <= {*shown.tolist()}
  assert len(shown) in (MAX_NAMED - 1, MAX_NAMED)
