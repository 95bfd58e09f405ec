"""`TrainInput.examples` names the examples that a batch has."""

import numpy as np
import pytest

from vmoe_study.data.decoding import decode
from vmoe_study.data.pipeline import train_input
from vmoe_study.data.sources import open_split
from vmoe_study.data.spec import DataSpec

SPLITS = ("train", "test")
BATCH = 96


@pytest.fixture(scope="module", params=[1, 2], ids=["single", "mixture"])
def mixture(request, data_dir):
  ops = "value_range(0, 255)"
  return [
    (DataSpec("digits", split, ops, 10, data_dir), 1.0 / (number + 1))
    for number, split in enumerate(SPLITS[: request.param])
  ]


@pytest.mark.parametrize("hosts", [1, 2])
def test_names_and_numbers_of_every_row(mixture, hosts, data_dir):
  sources = {
    f"digits[{split}]": open_split("digits", split, data_dir)
    for split in SPLITS
  }
  inputs = [
    train_input(
      mixture,
      batch_size=BATCH,
      seed=5,
      process_index=host,
      process_count=hosts,
    )
    for host in range(hosts)
  ]
  for step in (0, 40):  # 40 is in the second epoch.
    images = np.concatenate([host[step]["image"] for host in inputs])
    told = inputs[-1].examples(step)
    assert len({name for name, _ in told}) == len(mixture)
    for image, (name, index) in zip(images, told, strict=True):
      expected = decode(sources[name][index]["image"], 1)
      np.testing.assert_array_equal(image, expected)
