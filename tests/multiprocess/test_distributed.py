"""Options that say who the other processes are."""

import argparse
import os
import subprocess
import sys

import jax
import pytest

from vmoe_study.cli import process_flags
from vmoe_study.parallel import distributed


def parse(*arguments):
  parser = argparse.ArgumentParser()
  process_flags.add_arguments(parser)
  return parser.parse_args(arguments)


def test_without_a_cluster_a_process_is_alone():
  distributed.initialize()
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
    process_flags.initialize(parse(*arguments))


@pytest.mark.parametrize(
  "variable, value",
  [
    ("SLURM_STEP_NUM_TASKS", "2"),
    ("OMPI_COMM_WORLD_SIZE", "16"),
    ("TPU_WORKER_HOSTNAMES", "host-0,host-1"),
  ],
)
def test_too_late_to_join_is_no_reason_to_go_alone(
  monkeypatch, variable, value
):
  jax.devices()  # From here on devices are in use.
  monkeypatch.setenv(variable, value)
  with pytest.raises(
    ValueError, match=rf"{variable}={value}.*a program of its"
  ):
    distributed.initialize()


def test_one_process_of_a_launcher_is_alone(monkeypatch):
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
  monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
  distributed.initialize()


def test_options_that_come_too_late_are_an_error():
  jax.devices()
  options = ["--coordinator=a:1", "--num-processes=2", "--process-id=0"]
  with pytest.raises(ValueError, match="num_processes=2.*a program of its"):
    process_flags.initialize(parse(*options))


def test_a_launcher_that_jax_does_not_know_is_an_error():
  """Its environment names several processes, and not how to find them."""
  script = (
    "from vmoe_study.parallel import distributed; distributed.initialize()"
  )
  done = subprocess.run(
    [sys.executable, "-c", script],
    env=os.environ | {"OMPI_COMM_WORLD_SIZE": "4"},
    capture_output=True,
    text=True,
  )
  assert "Give coordinator" in done.stderr


def test_a_cluster_that_cannot_be_joined_is_no_reason_to_go_alone(monkeypatch):
  def refuse(*_, **__):
    raise RuntimeError("connection refused")

  monkeypatch.setattr(jax.distributed, "initialize", refuse)
  with pytest.raises(RuntimeError, match="refused"):
    distributed.initialize()
