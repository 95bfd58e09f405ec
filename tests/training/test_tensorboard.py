"""Event files: TensorBoard reads what was written, whatever went wrong."""

import json
import resource
import subprocess
import sys
import types

import cv2
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)
from tensorboard.plugins.hparams.metadata import (
  SESSION_START_INFO_TAG,
  parse_session_start_info_plugin_data,
)
from tensorboard.util import tensor_util

from vmoe_study.training.metrics import MetricsWriter
from vmoe_study.training.tensorboard import EventWriter

pytestmark = pytest.mark.slow


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


def test_tensorboard_reads_everything_else(tmp_path):
  writer = MetricsWriter(tmp_path)
  image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
  values = np.array([[0.0, 1.0], [1.0, 3.0]], np.float32)
  config = {"seed": 3, "train": {"mixup": 0.5, "trackers": ()}, "a": None}
  writer.write_config(0, config)
  writer.write_images(7, {"routing/patches": image})
  writer.write_histograms(7, {"train/routing/load": values})
  writer.close()
  events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
  events.Reload()

  def only(plugin, tag):
    assert tag in events.PluginTagToContent(plugin)
    (event,) = events.Tensors(tag)
    return event.step, tensor_util.make_ndarray(event.tensor_proto)

  step, (width, height, encoded) = only("images", "routing/patches")
  assert (step, int(width), int(height)) == (7, 3, 2)
  decoded = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
  np.testing.assert_array_equal(decoded[..., ::-1], image)
  step, buckets = only("histograms", "train/routing/load")
  counts, edges = np.histogram(values, len(buckets))
  assert step == 7
  np.testing.assert_allclose(buckets[:, 2], counts)
  np.testing.assert_allclose(buckets[:, 0], edges[:-1], atol=1e-6)
  _, text = only("text", "config")
  assert json.loads(text.item().decode().strip("`\n")) == {
    **config,
    "train": {"mixup": 0.5, "trackers": []},
  }
  content = events.PluginTagToContent("hparams")[SESSION_START_INFO_TAG]
  found = parse_session_start_info_plugin_data(content).hparams
  assert found["seed"].number_value == 3
  assert found["train.mixup"].number_value == 0.5
  assert found["a"].string_value == "None"


def test_it_has_the_methods_of_clu_and_imports_no_tensorflow():
  code = (
    "import importlib.util, inspect, runpy, sys\n"
    "import vmoe_study.training.metrics as metrics\n"
    "assert 'tensorflow' not in sys.modules\n"
    # The package would import TensorFlow.
    "(folder,) = importlib.util.find_spec('clu').submodule_search_locations\n"
    "path = folder + '/metric_writers/interface.py'\n"
    "Clu = runpy.run_path(path)['MetricWriter']\n"
    "for name, own in inspect.getmembers(metrics.TrackerWriter):\n"
    "  if name.startswith(('write_', 'flush', 'close')):\n"
    "    wanted = inspect.signature(getattr(Clu, name)).parameters.values()\n"
    "    needed = [p.name for p in wanted if p.default is p.empty]\n"
    "    assert list(inspect.signature(own).parameters) == needed, name\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
