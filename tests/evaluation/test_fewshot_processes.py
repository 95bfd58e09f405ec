"""Few-shot evaluation gives the same in two processes as in one."""

import os
import socket
import subprocess
import sys

import pytest

from ..programs import xla_flags

pytestmark = pytest.mark.process

SCRIPT = """
import sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from vmoe_study.parallel import sharding
from vmoe_study.parallel.mesh import AXES
from vmoe_study.evaluation import fewshot

rng = np.random.default_rng(0)
labels = rng.integers(0, 4, 200)
images = rng.normal(size=(4, 6))[labels] + rng.normal(size=(200, 6))
images = images.astype(np.float32)
train, test = slice(120), slice(120, None)

def share(images, labels, size=16, hosts=2):
  for start in range(0, len(labels), size):
    rows = np.arange(start, start + size).reshape(hosts, -1)
    rows = rows[jax.process_index()]
    real = rows < len(labels)
    rows = np.where(real, rows, 0)
    yield {"image": images[rows], "mask": real.astype(np.float32),
           "label": np.eye(4, dtype=np.float32)[labels[rows]]}

# Devices of the two processes take turns, as they do on TPUs.
devices = np.array(jax.devices())[[0, 2, 1, 3]].reshape(1, 4, 1)
mesh = jax.sharding.Mesh(devices, AXES)

def features(scale, images):
  whole = sharding.to_global(mesh, images)
  scaled = jax.jit(lambda x: scale * x,
                   out_shardings=sharding.batch_sharding(mesh))(whole)
  return sharding.to_local(scaled)

task = fewshot.FewshotTask(
    "task", labels[train],
    lambda rows: share(images[train][rows], labels[train][rows]),
    list(share(images[test], labels[test])), 4)
evaluator = fewshot.FewshotEvaluator("fewshot", features, [task], shots=(5,))
metrics = dict(evaluator.run(2.0))

chosen = fewshot.select_shots(labels[train], 4, 5, 0)
expected = fewshot.fewshot_accuracies(
    2 * images[train][chosen], labels[train][chosen],
    2 * images[test], labels[test], 4)
assert metrics["fewshot/task/5shot"] == expected.max(), (metrics, expected)
assert 0.5 < expected.max() < 1
"""


def test_two_processes_agree_with_one():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", SCRIPT, address, str(index)],
      env=os.environ | {"XLA_FLAGS": xla_flags(2), "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for index in range(2)
  ]
  try:
    outputs = [process.communicate(timeout=100)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, output in zip(processes, outputs, strict=True):
    assert process.returncode == 0, output[-4000:]
