"""Metrics survive interruptions: no line twice, none lost, none torn."""

import json

from vmoe_study.training.metrics import MetricsWriter
from vmoe_study.training.metrics_file import FILE_NAME, read_metrics


def test_a_resumed_run_drops_what_it_will_compute_again(tmp_path):
  writer = MetricsWriter(tmp_path)
  for step in (10, 20, 30):
    writer.write_scalars(step, {"train/loss": 1.0 / step})
  writer.close()
  with (tmp_path / FILE_NAME).open("a") as file:
    file.write('{"step": 40, "train/lo')  # As a killed process leaves it.

  writer = MetricsWriter(tmp_path, start_step=20)
  writer.write_scalars(30, {"train/loss": 3.0})
  writer.close()
  lines = (tmp_path / FILE_NAME).read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [row["step"] for row in rows] == [10, 20, 30]
  assert rows[-1]["train/loss"] == 3.0
  assert list(read_metrics(tmp_path)) == rows


def test_no_metrics_yet(tmp_path):
  assert list(read_metrics(tmp_path)) == []
