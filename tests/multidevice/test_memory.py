"""What the devices hold while a run trains, against what `plan` counts."""

import math

import jax
import pytest

from vmoe_study.performance.sizes import kept_bytes
from vmoe_study.run import train as train_lib
from vmoe_study.run.config_file import load_config
from vmoe_study.training.steps_ahead import StepsAhead

TINY = [
  "model.fields.width=32",
  "model.fields.depth=2",
  "train.num_epochs=0.0",
  "train.num_steps=5",
  "train.schedule.warmup_steps=0",
  "evaluations={}",
  "fewshot={}",
]


def bytes_of(arrays):
  """Bytes on each device."""
  return sum(
    x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
    for x in arrays
  )


@pytest.mark.slow
@pytest.mark.parametrize(
  "options",
  [
    [
      "mesh.expert=4",
      "train.optimizer.moment_dtype=bfloat16",
      "train.batches_ahead=0",
    ],
    ["mesh.expert=2", "mesh.fsdp=true", "train.batches_ahead=4"],
  ],
)
def test_live_arrays_are_what_plan_counts(options, tmp_path, monkeypatch):
  config = load_config("configs/digits.py", [*TINY, *options])
  trainings, most = [], []
  before = {id(x) for x in jax.live_arrays()}
  start, training = StepsAhead._start, train_lib.Training

  def started(self, step, batch):
    start(self, step, batch)
    metrics = [metrics for _, _, metrics in self._waiting]
    known = jax.tree.leaves([*metrics, self.metrics])
    live = [x for x in jax.live_arrays() if id(x) not in before]
    most.append(bytes_of(live) - bytes_of(known))

  def made(*args):
    trainings.append(training(*args))
    return trainings[0]

  monkeypatch.setattr(StepsAhead, "_start", started)
  monkeypatch.setattr(train_lib, "Training", made)
  train_lib.train(config, tmp_path)
  expected = kept_bytes(trainings[0])
  # Beside these: the number of the step, whether it failed, and the last
  # metrics that the health checks have seen.
  assert 5 <= max(most) - sum(expected.values()) <= 5 + 64
  assert expected["batch"] > 500
  ahead = config.train.batches_ahead
  assert expected["waiting batches"] == ahead * expected["batch"]
