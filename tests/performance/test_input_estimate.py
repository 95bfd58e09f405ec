"""Cores and requests of the training input."""

import dataclasses

from vmoe_study.performance.input_estimate import InputEstimate, estimate_input
from vmoe_study.run.config_file import load_config


def test_cores_and_requests():
  """JFT for 7 epochs: 2.1e9 requests for single images, 40 in 4 MB blocks."""
  images = 7 * 300_000_000
  blocks = InputEstimate(images, 500.0, 100e3, images // 40)
  cores, requests = blocks.describe(20_000.0)
  assert "20,000 images/s take 40 cores over all hosts" in cores
  assert "2,000 MB/s" in cores
  # 52.5 million requests at $0.4 per million.
  assert "52,500,000 requests, which cost on the order of $10 at" in requests
  single = dataclasses.replace(blocks, requests=images)
  assert "on the order of $1,000 at" in next(single.describe(None))


def test_a_local_data_set_takes_no_requests(digits_folder):
  overrides = [f"data.data_dir={digits_folder}", "train.num_epochs=2.0"]
  overrides += ["train.schedule.warmup_steps=2"]
  found = estimate_input(load_config("configs/digits.py", overrides))
  assert found.requests == 0 and found.images >= 2 * 1438
  assert found.images_per_core > 1 and 50 < found.image_bytes < 1000
  assert len(list(found.describe(100.0))) == 1


def test_a_data_set_that_is_not_here(tmp_path):
  overrides = ["data.name=fashion_mnist", f"data.data_dir={tmp_path}"]
  assert estimate_input(load_config("configs/digits.py", overrides)) is None
