"""Worker processes: shared, without /dev/shm, and missed when they end."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from vmoe_study.data.workers import (
  WorkerError,
  Workers,
  close_workers,
  num_cores,
  shared_workers,
)

pytestmark = [pytest.mark.slow, pytest.mark.process]


class Numbers:
  """Batches of 8 images that hold their step; step 5 fails."""

  shape = (8, 50_000)

  def open(self, number, count):
    start, stop = (8 * n // count for n in (number, number + 1))

    def compute(step, images):
      if step == 5:
        raise ValueError("step 5 fails")
      images[start:stop] = step
      return {"rows": np.arange(start, stop), "pid": np.array([os.getpid()])}

    return compute


@pytest.fixture(scope="module")
def workers():
  workers = Workers(2)
  yield workers
  workers.close()


def test_parts_arrive_in_order_from_the_same_processes(workers):
  both = zip(
    workers.iterate(Numbers(), range(4)),
    workers.iterate(Numbers(), range(10, 14)),
    strict=True,
  )
  pids = set()
  for step, pair in enumerate(both):
    for (images, parts), value in zip(pair, (step, step + 10), strict=True):
      assert images.shape == (8, 50_000) and (images == value).all()
      rows = [part["rows"].tolist() for part in parts]
      assert rows == [[0, 1, 2, 3], [4, 5, 6, 7]]
      pids.add(tuple(int(part["pid"][0]) for part in parts))
  ((first, second),) = pids
  assert len({first, second, os.getpid()}) == 3


@pytest.mark.parametrize("count", [0, 2])
def test_images_that_are_still_used_are_not_overwritten(count):
  workers = Workers(count)
  kept, seen = [], set()
  for images, _ in workers.iterate(Numbers(), range(6, 18)):
    step = int(images[0, 0])
    if step % 4 == 0:
      kept.append((step, images[3:]))  # A view holds the batch.
    seen.add(images.ctypes.data)
  workers.close()
  assert [step for step, _ in kept] == [8, 12, 16]
  assert all((rows == step).all() for step, rows in kept)
  assert len(seen) < 12  # The memory of the other batches is used again.


def test_an_error_of_a_worker_is_raised_here_and_the_others_go_on(workers):
  batches = workers.iterate(Numbers(), range(3, 8))
  assert [next(batches)[0][0, 0] for _ in range(2)] == [3, 4]
  with pytest.raises(ValueError, match="step 5 fails") as error:
    next(batches)
  assert "in compute" in "".join(error.value.__notes__)
  assert len(list(workers.iterate(Numbers(), range(2)))) == 2


def test_a_worker_that_is_killed_is_missed():
  with contextlib.closing(Workers(2)) as workers:
    batches = workers.iterate(Numbers(), iter(range(6, 10**6)))
    _, parts = next(batches)
    pid = int(parts[1]["pid"][0])
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"has ended: Killed.*num_workers"):
      for _ in range(20):
        next(batches)


def test_all_inputs_of_a_process_share_workers():
  assert shared_workers(0) is shared_workers(0) is not shared_workers(1)
  list(shared_workers(0).iterate(Numbers(), range(2)))
  close_workers()
  assert len(list(shared_workers(0).iterate(Numbers(), range(2)))) == 2


def test_a_small_dev_shm_is_enough(tmp_path):
  """Containers have 64 MB there; here it is smaller than one batch."""
  script = tmp_path / "script.py"
  script.write_text(
    textwrap.dedent("""
      import sys
      sys.path.insert(0, sys.argv[1])
      from tests.data.test_workers import Numbers
      from vmoe_study.data.workers import Workers

      if __name__ == "__main__":
        workers = Workers(2)  # Not closed: they end with this process.
        batches = workers.iterate(Numbers(), range(5))
        print(sum(len(parts) for _, parts in batches))
    """)
  )
  inside = f"mount -t tmpfs -o size=64k tmpfs /dev/shm && {sys.executable}"
  root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
  done = subprocess.run(
    ["unshare", "-m", "sh", "-c", f"{inside} {script} {root}"],
    capture_output=True,
    text=True,
    timeout=60,
  )
  if "unshare" in done.stderr or "mount" in done.stderr:
    pytest.skip("needs the right to mount")
  assert done.stdout == "10\n", done.stderr


def test_cores_are_those_of_the_affinity():
  before = os.sched_getaffinity(0)
  try:
    os.sched_setaffinity(0, {min(before)})
    assert num_cores() == 1
  finally:
    os.sched_setaffinity(0, before)
