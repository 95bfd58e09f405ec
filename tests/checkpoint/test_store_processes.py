"""Checkpoints across device counts and across processes."""

import inspect
import os
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from vmoe_study.checkpoint import load as load_lib
from vmoe_study.checkpoint import store as store_lib

from ..programs import xla_flags

pytestmark = pytest.mark.process

VALUES = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)


def place(shape, spec):
  """A sharding over the first devices, and the values with it."""
  mesh = jax.make_mesh(
    shape,
    ("replica", "expert"),
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=jax.devices()[: int(np.prod(shape))],
  )
  sharding = jax.sharding.NamedSharding(mesh, spec)
  return sharding, jax.make_array_from_callback(
    VALUES.shape, sharding, lambda index: VALUES[index]
  )


PRELUDE = f"""
import sys
import jax, numpy as np
from vmoe_study.checkpoint import store as store_lib
directory = sys.argv[1]
VALUES = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)

{inspect.getsource(place)}
"""

TWO_PROCESSES = """
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
sharding, w = place((2, 2), jax.P("replica", "expert"))
store = store_lib.CheckpointStore(directory)
for step in (1, 2):
  store.save(step, {"w": step * w}, None, {"step": step}, wait=True)
if jax.process_index() == 1:
  # Only this host's file: the other host can still read its own half.
  import pathlib
  folder = pathlib.Path(directory) / "2" / "params"
  for file in folder.rglob("ocdbt.process_1/d/*"):
    file.write_bytes(b"")
  # This host looks late, when the other one may have changed something.
  import time
  from vmoe_study.checkpoint import load
  look = load.complete_steps
  load.complete_steps = lambda path: time.sleep(0.5) or look(path)
from jax.experimental import multihost_utils
multihost_utils.sync_global_devices("damaged")
restored = store.restore(params={"w": w}, opt_state=None)
assert (restored.step, restored.metadata) == (1, {"step": 1})
for shard in restored.params["w"].addressable_shards:
  np.testing.assert_array_equal(shard.data, VALUES[shard.index])
store.save(2, {"w": 2 * w}, None, {"step": 2})
store.close()
"""


def _start(script, *arguments, devices):
  flags = xla_flags(devices)
  return subprocess.Popen(
    [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *arguments],
    env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _finish(*processes):
  try:
    outputs = [process.communicate(timeout=100)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 0, output[-4000:]


def test_eight_devices_to_four_and_to_host_memory(tmp_path):
  _, eight = place((2, 4), jax.P("expert", "replica"))
  store = store_lib.CheckpointStore(tmp_path)
  store.save(1, {"w": eight}, {"m": 2 * eight}, {"devices": 8})
  sharding, _ = place((1, 4), jax.P(None, "expert"))
  template = jax.ShapeDtypeStruct(VALUES.shape, np.float32, sharding=sharding)
  restored = store.restore(params={"w": template}, opt_state={"m": template})
  store.close()
  assert restored.params["w"].sharding == sharding
  np.testing.assert_array_equal(restored.params["w"], VALUES)
  np.testing.assert_array_equal(restored.opt_state["m"], 2 * VALUES)
  params, config, _ = load_lib.load_params(tmp_path)
  assert config == {"devices": 8}
  np.testing.assert_array_equal(params["w"], VALUES)


def test_damage_seen_by_one_of_two_processes_makes_both_step_back(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  processes = [
    _start(TWO_PROCESSES, str(tmp_path), address, str(index), devices=2)
    for index in range(2)
  ]
  _finish(*processes)
  params, config, _ = load_lib.load_params(tmp_path)
  assert config == {"step": 2}
  np.testing.assert_array_equal(params["w"], 2 * VALUES)
