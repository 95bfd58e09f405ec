"""Few-shot evaluation against reference arrays and a direct solution."""

import pathlib

import numpy as np
import pytest

from vmoe_study.evaluation import fewshot

REFERENCE = (
  pathlib.Path(__file__).parents[1] / "data" / "reference" / "fewshot.npz"
)
SHOTS = (1, 5, 10)
MODERATE = (20, 29)  # Where the float32 weights of the reference are accurate.


class _Case:
  def __init__(self, arrays, name):
    self._arrays, self._name = arrays, name

  def __getitem__(self, key):
    return self._arrays[f"{self._name}/{key}"]

  def selected(self, shots):
    return fewshot.select_shots(
      self["train_labels"], int(self["num_classes"]), shots, int(self["seed"])
    )


@pytest.fixture(scope="module")
def case():
  return _Case(np.load(REFERENCE), "A_N_lt_D")


def _problem(rows, dim, classes, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, rows)
  centers = rng.normal(size=(classes, dim))
  features = centers[labels] + rng.normal(size=(rows, dim))
  return features.astype(np.float32), labels


def _direct_weights(features, labels, classes, penalty):
  """Solves the normal equations directly."""
  x = features.astype(np.float64)
  x = (x - x.mean(0)) / (x.std(0) + 1e-5)
  x = np.hstack([x, np.full((len(x), 1), 100.0)])
  y = np.where(np.arange(classes) == labels[:, None], 1.0, -1.0)
  return np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)


def test_penalties(case):
  np.testing.assert_array_equal(
    fewshot.PENALTIES, np.load(REFERENCE)["l2_regs"]
  )


@pytest.mark.parametrize("shots", SHOTS)
def test_reference_selection_and_whitening(case, shots):
  chosen = case.selected(shots)
  np.testing.assert_array_equal(chosen, case[f"idx_shot{shots}"])
  path = fewshot.RidgePath.fit(
    case["train_features"][chosen], case["train_labels"][chosen], 6
  )
  for name in ("mean", "std"):
    np.testing.assert_allclose(
      getattr(path, name), case[f"{name}_shot{shots}"][0], atol=1e-5
    )


@pytest.mark.parametrize("shots", SHOTS)
def test_reference_weights(case, shots):
  chosen = case.selected(shots)
  path = fewshot.RidgePath.fit(
    case["train_features"][chosen], case["train_labels"][chosen], 6
  )
  for index in MODERATE:
    np.testing.assert_allclose(
      path.weights(fewshot.PENALTIES[index]),
      case[f"w_shot{shots}_l2idx{index}"],
      atol=1e-5,
    )


@pytest.mark.parametrize("shots", SHOTS)
def test_reference_accuracies(case, shots):
  chosen = case.selected(shots)
  accuracies = fewshot.fewshot_accuracies(
    case["train_features"][chosen],
    case["train_labels"][chosen],
    case["test_features"],
    case["test_labels"],
    int(case["num_classes"]),
  )
  np.testing.assert_allclose(accuracies, case[f"acc64_shot{shots}"], atol=1e-6)
  # The accuracies in float32 may differ by one image of 150.
  np.testing.assert_allclose(
    accuracies[14:], case[f"acc_shot{shots}"][14:], atol=1.01 / 150
  )


@pytest.mark.parametrize("rows,dim", [(60, 8), (9, 8), (8, 8), (12, 40)])
@pytest.mark.parametrize("penalty", [2.0**-10, 1.0, 2.0**19])
def test_both_forms_solve_the_normal_equations(rows, dim, penalty):
  features, labels = _problem(rows, dim, 4)
  path = fewshot.RidgePath.fit(features, labels, 4)
  direct = _direct_weights(features, labels, 4, penalty)
  np.testing.assert_allclose(path.weights(penalty), direct, atol=1e-7)


def test_selection_is_nested_and_takes_all_of_small_classes():
  labels = np.array([2, 0, 2, 2, 0, 3])
  one = fewshot.select_shots(labels, 5, 1, seed=3)
  two = fewshot.select_shots(labels, 5, 2, seed=3)
  assert labels[one].tolist() == [0, 2, 3]
  assert labels[two].tolist() == [0, 0, 2, 2, 3]
  assert set(one) < set(two) and len(set(two)) == 5


def test_selection_from_a_list_of_labels():
  labels = [2, 0, 2, 2, 0, 3]
  np.testing.assert_array_equal(
    fewshot.select_shots(labels, 5, 2, seed=3),
    fewshot.select_shots(np.array(labels), 5, 2, seed=3),
  )


def test_best_penalty_is_best_in_mean_rank_not_in_mean():
  accuracies = {
    "a": np.array([0.10, 0.11, 0.12]),
    "b": np.array([0.10, 0.11, 0.12]),
    "c": np.array([0.90, 0.10, 0.05]),
  }
  assert fewshot.best_penalty(accuracies) == 2
  assert fewshot.best_penalty({"c": accuracies["c"]}) == 0
  assert fewshot.best_penalty({"tie": np.array([0.5, 0.5, 0.4])}) == 1


def _authors_choice(accuracies):
  """The public code: float32 accuracies, and NumPy's default sort, twice."""
  ranks = [np.argsort(np.argsort(np.float32(a))) for a in accuracies]
  return np.argmax(np.mean(ranks, axis=0))


def test_best_penalty_among_ties_is_the_authors(case):
  published = [case[f"acc_shot{shots}"] for shots in SHOTS]
  random = np.random.default_rng(0)
  groups = [published, published[::2], published[:1]]
  tied = [random.integers(40, 60, (2, 30)) / 60 for _ in range(20)]
  groups += [a + 1e-12 * random.normal(size=a.shape) for a in tied]
  for accuracies in groups:
    named = {str(i): np.float64(a) for i, a in enumerate(accuracies)}
    assert fewshot.best_penalty(named) == _authors_choice(accuracies)


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_imagenet_size_fits_in_seconds():
  features, labels = _problem(10_000, 512, 1000)
  found = fewshot.fewshot_accuracies(
    features, labels, features[:500], labels[:500], 1000
  )
  # Images that were trained on are recognised better than by chance.
  assert found.max() > 10 / 1000


def _batches(features, labels, classes, size):
  """Padded batches, as in the evaluation input."""
  for start in range(0, len(labels), size):
    real = len(labels[start : start + size])
    images = np.zeros((size, features.shape[1]), np.float32)
    one_hot = np.zeros((size, classes), np.float32)
    images[:real] = features[start : start + size]
    one_hot[np.arange(real), labels[start : start + size]] = 1
    yield {
      "image": images,
      "label": one_hot,
      "mask": (np.arange(size) < real).astype(np.float32),
    }


def _task(name, seed, classes=4, train_rows=70):
  features, labels = _problem(train_rows + 50, 6, classes, seed)
  train, test = slice(train_rows), slice(train_rows, None)
  return fewshot.FewshotTask(
    name=name,
    train_labels=labels[train],
    make_batches=lambda indices: _batches(
      features[train][indices], labels[train][indices], classes, 16
    ),
    test_batches=list(_batches(features[test], labels[test], classes, 16)),
    num_classes=classes,
  ), (features, labels)


def test_evaluator_agrees_with_the_parts():
  built = [_task("first", 1), _task("second", 2)]
  evaluator = fewshot.FewshotEvaluator(
    "fewshot",
    lambda scale, images: scale * images,
    [task for task, _ in built],
    shots=(2, 5),
    seed=7,
  )
  metrics = dict(evaluator.run(2.0))
  for shots in (2, 5):
    by_task = {}
    for task, (features, labels) in built:
      chosen = fewshot.select_shots(labels[:70], 4, shots, 7)
      by_task[task.name] = fewshot.fewshot_accuracies(
        2 * features[chosen], labels[chosen], 2 * features[70:], labels[70:], 4
      )
    best = fewshot.best_penalty(by_task)
    for name, accuracies in by_task.items():
      assert metrics.pop(f"fewshot/{name}/{shots}shot") == accuracies[best]
    expected = fewshot.PENALTIES[best]
    assert metrics.pop(f"fewshot/{shots}shot_penalty") == expected
  assert not metrics
  assert dict(evaluator.run(2.0)) == dict(evaluator.run(2.0))


def test_several_draws_are_averaged_with_their_spread():
  tasks = [_task("first", 1)[0], _task("second", 2)[0]]

  def run(seed, step=0, **draws):
    make = fewshot.FewshotEvaluator
    evaluator = make("f", lambda _, x: x, tasks, (2,), seed, **draws)
    return dict(evaluator.run(None, step))

  single = [run(seed) for seed in (3, 4, 5)]  # Rule "seed": seed + draw.
  found = run(3, draws=3)
  for name in ("f/first/2shot", "f/second/2shot"):
    values = [metrics[name] for metrics in single]
    assert len(set(values)) > 1
    np.testing.assert_allclose(found.pop(name), np.mean(values))
    np.testing.assert_allclose(found.pop(f"{name}_std"), np.std(values, ddof=1))
  penalties = [metrics["f/2shot_penalty"] for metrics in single]
  np.testing.assert_allclose(
    found.pop("f/2shot_penalty"), np.prod(penalties) ** (1 / 3)
  )
  assert not found
  steps = [run(0, step, draw_rule="vmoe_step") for step in (0, 1000)]
  assert steps[0] != steps[1]
  assert run(0, 0, draw_rule="vmoe") == run(0, 9, draw_rule="vmoe")


def test_small_classes_are_reported(caplog):
  task, _ = _task("small", 3, classes=9, train_rows=20)
  evaluator = fewshot.FewshotEvaluator(
    "fewshot", lambda _, images: images, [task], shots=(5,)
  )
  assert "small: " in caplog.text and "fewer than 5" in caplog.text
  assert 0 < dict(evaluator.run(None))["fewshot/small/5shot"] <= 1


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"tasks": []}, "tasks=.*empty"),
    ({"shots": ()}, "shots=.*at least 1"),
    ({"shots": (0, 5)}, "shots=.*at least 1"),
    ({"penalties": (1.0, -1.0)}, "penalties=.*above 0"),
    ({"draws": 0}, "draws=0: must be at least 1"),
  ],
)
def test_bad_arguments_are_named(changes, message):
  task, _ = _task("task", 0)
  arguments = {"tasks": [task], "shots": (1,), "penalties": (1.0,)} | changes
  with pytest.raises(ValueError, match=message):
    fewshot.FewshotEvaluator("fewshot", None, **arguments)


def test_labels_out_of_range_are_named():
  task, _ = _task("task", 0, classes=4)
  task = fewshot.FewshotTask(**(vars(task) | {"num_classes": 3}))
  with pytest.raises(ValueError, match="labels from 0 to 3.*num_classes=3"):
    fewshot.FewshotEvaluator("fewshot", None, [task])


@pytest.mark.parametrize("label", [-1, 4])
def test_a_fit_needs_labels_in_range(label):
  with pytest.raises(ValueError, match=r"labels from.*num_classes=4"):
    fewshot.RidgePath.fit(np.eye(3), np.array([0, 1, label]), 4)
