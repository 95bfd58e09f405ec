"""Global batches are the same for any number of processes."""

import os
import socket
import subprocess
import sys

import pytest

from ..programs import xla_flags

SCRIPT = """
import argparse, sys
from vmoe_study.cli import process_flags

parser = argparse.ArgumentParser()
process_flags.add_arguments(parser)
args = parser.parse_args()
process_flags.initialize(args)
process_flags.initialize(args)  # Once more changes nothing.

import jax, numpy as np
from vmoe_study.parallel import sharding
from vmoe_study.parallel.mesh import MeshSpec, make_mesh

count, index = jax.process_count(), jax.process_index()
assert count == args.num_processes
# Devices of the processes take turns, as jax.make_mesh arranges those of TPUs.
devices = sorted(jax.devices(), key=lambda d: (d.id % (4 // count), d.id))
if count > 1:
  assert [d.process_index for d in devices[:2]] == [0, 1]
rows = np.arange(16, dtype=np.float32).reshape(16, 1)
for expert in (1, 2, 4):
  mesh = make_mesh(MeshSpec(-1, expert), devices)
  whole = sharding.to_global(mesh, np.split(rows, count)[index])
  spread = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
  np.testing.assert_array_equal(spread(whole), rows)
  # Two to a group, as routers see them: (groups, images).
  groups = spread(whole.reshape(8, 2))
  np.testing.assert_array_equal(groups, rows.reshape(8, 2))
  np.testing.assert_array_equal(
    sharding.to_local(whole), np.split(rows, count)[index])
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_of_a_batch_are_in_the_order_of_the_data(processes):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  flags = xla_flags(4 // processes)
  started = [
    subprocess.Popen(
      [sys.executable, "-c", SCRIPT, f"--coordinator={address}"]
      + [f"--num-processes={processes}", f"--process-id={index}"],
      env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(processes)
  ]
  try:
    outputs = [process.communicate(timeout=100)[0] for process in started]
  finally:
    for process in started:
      process.kill()
  for process, output in zip(started, outputs, strict=True):
    assert process.returncode == 0, output[-4000:]
