"""A run has finished when its last step is saved and evaluated."""

import json

import pytest

from vmoe_study.run.finished import is_evaluated
from vmoe_study.study import results

CONFIG = {
  "seed": 0,
  "model": {"moe": {"router": "dense", "options": {}, "group_images": 1}},
  "evaluations": {"test": {}, "val": {}},
  "fewshot": {"digits": {}},
  "train": {"batch_size": 2},
}
SIZES = {"step": 0, "num_steps": 6.0}
TRAINED = {"step": 6, "train/loss": 0.5, "train/seconds": 2.0}
EARLIER = {
  "step": 3,
  "test/accuracy": 0.1,
  "val/accuracy": 0.2,
  "fewshot/digits/5shot": 0.3,
}
LAST = EARLIER | {"step": 6, "test/accuracy": 0.4}


@pytest.fixture
def final(tmp_path):
  """What is read from a workdir with these rows and saved steps."""

  def final(rows, steps, config=CONFIG):
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    for step in steps:
      (tmp_path / "checkpoints" / step).mkdir(parents=True)
    return results.read_run(tmp_path)[1]

  return final


def test_saved_and_evaluated(final):
  found = final([SIZES, EARLIER, TRAINED, LAST], ["3", "6"])
  assert found["test/accuracy"] == 0.4 and found["images_per_second"] == 6


@pytest.mark.parametrize(
  ("rows", "steps"),
  [
    ([SIZES, EARLIER, TRAINED], ["3", "6"]),  # Killed in the evaluation.
    ([SIZES, EARLIER, TRAINED, LAST], ["3"]),  # Killed in the save.
    ([SIZES, TRAINED, LAST], ["3", "6.orbax-checkpoint-tmp"]),
    ([SIZES, TRAINED, {"step": 6, "test/loss": 1.0}], ["6"]),
    ([SIZES, TRAINED, LAST], ["damaged-6", "3"]),
    ([SIZES], ["6"]),
    ([SIZES | {"num_steps": None}, TRAINED, LAST], ["6"]),
    ([SIZES | {"num_steps": "6"}, TRAINED, LAST], ["6"]),
    ([SIZES, TRAINED, LAST | {"step": 6.0}], ["6"]),
    ([SIZES, TRAINED, LAST | {"step": True}], ["6"]),
    ([TRAINED, LAST], ["6"]),
    ([SIZES, EARLIER, LAST, SIZES | {"step": 6, "num_steps": 9}], ["6"]),
    ([], []),
  ],
)
def test_anything_less_is_not_finished(final, rows, steps):
  assert final(rows, steps) is None


def test_metrics_alone_are_not_enough(final):
  assert final([SIZES, TRAINED, LAST], []) is None


def test_without_evaluations_the_checkpoint_decides(final):
  config = CONFIG | {"evaluations": {}, "fewshot": {}}
  assert final([SIZES, TRAINED], ["3"], config) is None
  assert final([SIZES, TRAINED], ["6"], config) is not None


def test_every_evaluation_counts():
  assert is_evaluated(CONFIG, [LAST], 6)
  assert not is_evaluated(CONFIG, [LAST], 3)
  for name in LAST:
    rest = {k: v for k, v in LAST.items() if k != name}
    assert name == "step" or not is_evaluated(CONFIG, [rest], 6)
