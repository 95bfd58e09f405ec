"""What one of two processes meets, both hear of."""

import os
import socket
import subprocess
import sys

from vmoe_study.run import lock

from ..programs import xla_flags

SCRIPT = """
import pathlib, sys
import jax
from vmoe_study.parallel import hosts
from vmoe_study.run import lock
from vmoe_study.checkpoint import store as store_lib
from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.training import metrics as metrics_lib

folder, address, number = sys.argv[1:]
folder, number = pathlib.Path(folder), int(number)
jax.distributed.initialize(address, 2, number)

def check(action, own, other=hosts.OtherHostError):
  try:
    action()
  except (own if number == 0 else other) as error:
    print(f"{action.__name__}: {error}")
  else:
    raise AssertionError(action)

def held():
  with lock.hold(folder / "held"):
    raise AssertionError

def not_a_folder():
  with lock.hold(folder / "file" / "work"):
    raise AssertionError

check(held, ValueError)
check(not_a_folder, OSError)
with lock.hold(folder / "work"):
  pass

writer = metrics_lib.MetricsWriter(folder / "work")
writer.write_scalars(1, {"a": 1.0})

def full(*_, **__):
  raise OSError("no space left")

append, writer._append = writer._append, full

def metrics():
  writer.write_scalars(2, {"a": 2.0})

check(metrics, OSError)
writer._append = append
writer.write_scalars(3, {"a": 3.0})
writer.close()

store = store_lib.CheckpointStore(folder / "store")
store._manager.save = full if number == 0 else lambda *_, **__: None

mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.P("x"))
params = {"w": jax.jit(lambda: jax.numpy.ones(4), out_shardings=sharding)()}

def saving():
  store.save(1, params, None, {})

check(saving, CheckpointError, CheckpointError)
store.save(1, params, None, {"step": 1})
store.close()
"""


def test_both_hear_of_what_one_meets(tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  (tmp_path / "file").write_text("")
  (tmp_path / "held").mkdir()
  with lock.hold(tmp_path / "held"):
    processes = [
      subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), address, str(number)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(1)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for number in range(2)
    ]
    try:
      results = [process.communicate(timeout=120) for process in processes]
    finally:
      for process in processes:
        process.kill()
  for process, (_, error) in zip(processes, results, strict=True):
    assert process.returncode == 0, error[-4000:]
  first, second = (said for said, _ in results)
  assert "held: workdir" in first and "in use by another run" in first
  assert "metrics: metrics of step 2 cannot be written" in first
  assert second.count("Another process of this run has failed") == 4
  assert "saving: saving step 1 in" in second
