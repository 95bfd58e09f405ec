"""Options that say who the other processes are."""

import argparse

import jax
import pytest

from vmoe_study import distributed


def parse(*arguments):
  parser = argparse.ArgumentParser()
  distributed.add_arguments(parser)
  return parser.parse_args(arguments)


def test_without_a_cluster_a_process_is_alone():
  distributed.initialize(parse())
  assert jax.process_count() == 1


@pytest.mark.parametrize(
  "arguments, message",
  [
    (["--coordinator=a:1"], "all three or none"),
    (["--num-processes=2", "--process-id=0"], "all three or none"),
    (
      ["--coordinator=a:1", "--num-processes=2", "--process-id=2"],
      r"must be in \[0, 2\)",
    ),
  ],
)
def test_options_that_cannot_be_are_errors(arguments, message):
  with pytest.raises(ValueError, match=message):
    distributed.initialize(parse(*arguments))


def test_a_cluster_that_cannot_be_joined_is_no_reason_to_go_alone(monkeypatch):
  def refuse(**_):
    raise RuntimeError("connection refused")

  monkeypatch.setattr(jax.distributed, "initialize", refuse)
  with pytest.raises(RuntimeError, match="refused"):
    distributed.initialize(parse())
