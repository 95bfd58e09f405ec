"""Event files: TensorBoard reads what was written, whatever went wrong."""

import resource
import sys
import types

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)
from tensorboard.util import tensor_util

from vmoe_study.training.metrics import MetricsWriter
from vmoe_study.training.tensorboard import EventWriter


@pytest.fixture(scope="module", autouse=True)
def _without_tensorflow():
  """TensorBoard reads with its own code, instead of importing TensorFlow."""
  name = "tensorboard.compat.notf"
  sys.modules.setdefault(name, types.ModuleType(name))


def read(folder) -> dict[str, list[tuple[int, float]]]:
  """Tag -> (step, value) of its events, as TensorBoard shows them."""
  everything = {"tensors": 0}  # By default it keeps a sample.
  events = EventAccumulator(str(folder), size_guidance=everything).Reload()
  assert events.PluginTagToContent("scalars").keys() == set(
    events.Tags()["tensors"]
  )
  return {
    tag: [
      (event.step, float(tensor_util.make_ndarray(event.tensor_proto)))
      for event in events.Tensors(tag)
    ]
    for tag in events.Tags()["tensors"]
  }


def test_tensorboard_reads_the_scalars(tmp_path):
  writer = MetricsWriter(tmp_path)
  writer.write_scalars(1, {"train/loss": 0.1, "a": np.float32(2)})
  writer.write_scalars(30, {"train/loss": float("inf")})
  expected = {
    "train/loss": [(1, float(np.float32(0.1))), (30, float("inf"))],
    "a": [(1, 2.0)],
  }
  assert read(tmp_path) == expected  # The file is readable during the run.
  writer.close()
  assert read(tmp_path) == expected


def test_files_are_read_in_the_order_in_which_they_were_written(tmp_path):
  steps = range(12)
  for step in steps:  # As of a run that is resumed, or whose disk is full.
    writer = EventWriter(tmp_path)
    writer.write_scalars(step, {"a": step})
    writer.close()
  assert len(list(tmp_path.glob("events.out.tfevents.*"))) == len(steps)
  assert read(tmp_path) == {"a": [(step, float(step)) for step in steps]}


def test_a_failed_write_does_not_hide_later_ones(tmp_path):
  writer = EventWriter(tmp_path)
  writer.write_scalars(1, {"a": 1.0})
  (file,) = tmp_path.iterdir()
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  half_a_record = file.stat().st_size + 20
  resource.setrlimit(resource.RLIMIT_FSIZE, (half_a_record, limits[1]))
  try:
    with pytest.raises(OSError, match="File too large"):
      writer.write_scalars(2, {"a": 2.0})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert file.stat().st_size == half_a_record
  writer.write_scalars(3, {"a": 3.0})
  writer.close()
  assert read(tmp_path) == {"a": [(1, 1.0), (3, 3.0)]}
