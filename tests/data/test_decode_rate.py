"""What a core decodes, as the log shows it."""

import time

import pytest

from vmoe_study.data.decode_rate import decode_rate, describe_rate
from vmoe_study.data.examples import ExampleReader
from vmoe_study.data.spec import DataSpec


def test_the_rate_is_that_of_the_whole_recipe(digits_folder, monkeypatch):
  """The first use of the data, which opens it, does not count."""
  clock = [0.0]
  read = ExampleReader.read_or_next

  def slow_read(self, *args):
    example = read(self, *args)
    assert example["image"].shape[:2] == (
      4,
      4,
    )  # The operations are part of it.
    clock[0] += 1 / 400
    return example

  monkeypatch.setattr(ExampleReader, "read_or_next", slow_read)
  monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
  folder = str(digits_folder)
  reader = ExampleReader(DataSpec("digits", "train", "resize(4)", 10, folder))
  assert decode_rate(reader) == pytest.approx(400)


def test_the_line_of_the_log():
  assert describe_rate(400.0, 0) == (
    "a core decodes 400 images/s of the training data; threads of this process "
    "do it"
  )
  assert describe_rate(400.0, 100).endswith(
    "with num_workers=100, this host at most 40,000 images/s"
  )
