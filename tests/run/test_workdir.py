"""A workdir belongs to one config, and to one run at a time."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from configs import digits
from vmoe_study.run import lock, workdir

CONFIG = digits.get_config().to_dict()


def changed(**train):
  return {**CONFIG, "train": {**CONFIG["train"], **train}}


@pytest.fixture
def claimed(tmp_path):
  workdir.claim(tmp_path, CONFIG)
  return tmp_path


def recorded(path):
  return json.loads((path / workdir.CONFIG_FILE).read_text())


def test_a_new_folder_and_the_same_config_are_fine(tmp_path):
  workdir.check(tmp_path / "new", CONFIG)
  workdir.claim(tmp_path / "new", CONFIG)
  workdir.check(tmp_path / "new", CONFIG)
  assert recorded(tmp_path / "new") == json.loads(json.dumps(CONFIG))


def test_a_harmless_change_is_refused_unless_allowed(claimed, caplog):
  new = changed(save_every=7)
  with pytest.raises(ValueError) as error:
    workdir.check(claimed, new)
  assert "train.save_every: 900 -> 7" in str(error.value)
  assert "--allow-change" in str(error.value)

  logging.getLogger("absl").addHandler(caplog.handler)
  workdir.check(claimed, new, allow_change=True)
  logging.getLogger("absl").removeHandler(caplog.handler)
  assert "train.save_every: 900 -> 7" in caplog.text
  workdir.claim(claimed, new)
  assert recorded(claimed)["train"]["save_every"] == 7
  workdir.check(claimed, new)


def test_any_other_change_is_refused_with_the_difference(claimed):
  new = changed(save_every=7, batch_size=128)
  for allow in (False, True):
    with pytest.raises(ValueError) as error:
      workdir.check(claimed, new, allow_change=allow)
    assert "train.batch_size: 64 -> 128" in str(error.value)
    assert "train.save_every: 900 -> 7" in str(error.value)
    assert "--allow-change" not in str(error.value)


def test_a_field_newer_than_the_run_has_its_default(claimed):
  old = recorded(claimed)
  del old["train"]["health"], old["train"]["on_save_error"]
  (claimed / workdir.CONFIG_FILE).write_text(json.dumps(old))
  workdir.check(claimed, CONFIG)
  health = {**CONFIG["train"]["health"], "on_nonfinite": "skip"}
  with pytest.raises(ValueError, match="on_nonfinite: stop -> skip"):
    workdir.check(claimed, changed(health=health))


def test_a_lost_or_damaged_config_file(claimed):
  file, new = claimed / workdir.CONFIG_FILE, changed(batch_size=128)
  file.write_text("")
  with pytest.raises(ValueError, match="config.json is damaged: .* Remove it"):
    workdir.check(claimed, CONFIG)
  file.unlink()
  workdir.check(claimed, CONFIG, saved=CONFIG)
  with pytest.raises(ValueError, match="train.batch_size: 64 -> 128"):
    workdir.check(claimed, new, saved=CONFIG)


HOLD = """
import sys, time
from vmoe_study.run import lock
with lock.hold(sys.argv[1]):
  print("held", flush=True)
  time.sleep(100)
"""


@pytest.fixture
def other(tmp_path):
  """Another process that holds the lock of `tmp_path`."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.communicate()


def test_a_second_run_is_refused_until_the_first_is_killed(other, tmp_path):
  refused = f"in use by another run, process {other.pid} on "
  with pytest.raises(ValueError, match=refused), lock.hold(tmp_path):
    pass
  os.kill(other.pid, signal.SIGKILL)
  other.wait()
  for _ in range(2):  # Each lets go of it again.
    with lock.hold(tmp_path):
      assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """A folder without locks, in a hurry."""
  monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.05)
  monkeypatch.setattr(lock, "STALE_SECONDS", 0.5)
  monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.1)
  return tmp_path


def test_a_second_run_in_a_bucket_is_refused(bucket):
  refused = pytest.raises(BlockingIOError, match=f"process {os.getpid()}")
  with lock.heartbeat_lock(bucket), refused, lock.heartbeat_lock(bucket):
    pass
  with lock.heartbeat_lock(bucket):
    pass
  assert not (bucket / "lock.json").exists()


def test_a_killed_run_in_a_bucket_holds_it_for_a_while_only(bucket):
  (bucket / "lock.json").write_text(json.dumps({"owner": "x", "token": "y"}))
  with lock.heartbeat_lock(bucket):
    held = json.loads((bucket / "lock.json").read_text())
    assert str(os.getpid()) in held["owner"]


def test_a_run_that_has_lost_its_bucket_is_interrupted(bucket):
  other = json.dumps({"owner": "x", "token": "y"})
  with pytest.raises(KeyboardInterrupt), lock.heartbeat_lock(bucket):
    (bucket / "lock.json").write_text(other)
    time.sleep(10)
  assert (bucket / "lock.json").read_text() == other
