"""One of two processes is preempted, then one dies: the job goes on."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from vmoe_study.checkpoint.load import complete_steps, read_manifest
from vmoe_study.training.metrics_file import read_metrics

from ..programs import xla_flags

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 120
HEARTBEAT_SECONDS = 20
# `python -m vmoe_study`, with a heartbeat for which a test can wait.
PROGRAM = f"""
import sys
from vmoe_study.parallel import distributed
distributed.HEARTBEAT_SECONDS = {HEARTBEAT_SECONDS}
from vmoe_study.__main__ import main
sys.exit(main())
"""
TINY = [
  "--config=configs/digits.py",
  "--config.mesh.expert=2",
  "--config.model.fields.width=16",
  "--config.model.fields.depth=1",
  "--config.model.fields.mlp_dim=32",
  "--config.model.moe.blocks=every 1",
  "--config.train.num_epochs=0",
  f"--config.train.num_steps={STEPS}",
  "--config.train.save_every=10",
  "--config.train.report_every=20",
  "--config.evaluations={}",
  "--config.fewshot={}",
]


class Job:
  """Two processes that nobody watches: no launcher ends one for the other."""

  def __init__(self, folder, data, name="work"):
    self.workdir = folder / name
    self._folder, self._data, self._starts = folder, data, 0

  def start(self):
    self._starts += 1
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    return [self._start(number, port) for number in range(2)]

  def _start(self, number, port):
    words = ["train", *TINY, f"--workdir={self.workdir}"]
    words += [f"--coordinator=localhost:{port}", "--num-processes=2"]
    environment = {
      "TFDS_DATA_DIR": str(self._data),
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": xla_flags(1),
      "JAX_COMPILATION_CACHE_DIR": str(self._folder / "compiled"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with self.log(number).open("w") as log:
      return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words, f"--process-id={number}"],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=log,
        stderr=subprocess.STDOUT,
      )

  def log(self, number):
    name = f"{self.workdir.name}_{self._starts}_{number}.log"
    return self._folder / name

  def wait_for_step(self, step, processes):
    deadline = time.monotonic() + 300
    while self.reached() < step:
      assert all(p.poll() is None for p in processes), self.log(0).read_text()
      assert time.monotonic() < deadline
      time.sleep(0.02)

  def final(self):
    """Fingerprints of parameters and optimizer state at the end."""
    return read_manifest(self.workdir / "checkpoints" / str(STEPS))["items"]

  def reached(self):
    return max(complete_steps(self.workdir / "checkpoints"), default=0)


def test_the_job_goes_on(tmp_path, digits_folder):
  job = Job(tmp_path, digits_folder)
  both = job.start()
  job.wait_for_step(20, both)
  both[1].send_signal(signal.SIGTERM)  # A notice to one of them.
  assert [process.wait(timeout=120) for process in both] == [75, 75]
  stopped = job.reached()
  assert 20 <= stopped < STEPS

  both = job.start()
  job.wait_for_step(stopped + 10, both)
  both[1].kill()
  both[1].wait()
  assert both[0].wait(timeout=HEARTBEAT_SECONDS + 20) not in (0, 75)
  assert f"step {stopped} of {STEPS}" in job.log(0).read_text()
  assert "heartbeat timeout" in job.log(0).read_text()

  reached = job.reached()
  assert stopped < reached < STEPS
  both = job.start()
  assert [process.wait(timeout=300) for process in both] == [0, 0]
  assert f"step {reached} of {STEPS}" in job.log(0).read_text()
  rows = [row for row in read_metrics(job.workdir) if "train/loss" in row]
  steps = [row["step"] for row in rows]
  assert steps == sorted(set(steps)) and {*steps} >= {*range(20, STEPS + 1, 20)}

  undisturbed = Job(tmp_path, digits_folder, "undisturbed")
  assert [p.wait(timeout=300) for p in undisturbed.start()] == [0, 0]
  assert job.final() == undisturbed.final()
