"""One run at a time in a workdir, on a disk and on object storage."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vmoe_study.run import heartbeat_lock as module
from vmoe_study.run import lock
from vmoe_study.run.heartbeat_lock import heartbeat_lock

from . import gcs_server

pytestmark = pytest.mark.slow

HOLD = """
import sys, time
from vmoe_study.run import lock
with lock.hold(sys.argv[1]):
  print("held", flush=True)
  time.sleep(100)
"""
STARTERS = 8
ME = f"process {os.getpid()} on "
OTHER = {"owner": "process 1 on another-host", "token": "other"}


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
  for _ in range(2):  # The lock is released each time.
    with lock.hold(tmp_path):
      assert ME in (tmp_path / ".lock").read_text()


class _Racing(MemoryFileSystem):
  """Something else happens right before, or after, a file is created."""

  protocol = "racing"
  cachable = False
  store, pseudo_dirs = {}, [""]
  before = after = staticmethod(lambda: None)

  def pipe_file(self, path, value, mode="overwrite", **kwargs):
    if mode == "create":
      _Racing.before()
    super().pipe_file(path, value, mode=mode, **kwargs)
    if mode == "create":
      _Racing.after()


@contextlib.contextmanager
def _storage(kind, tmp_path, monkeypatch):
  if kind == "local":
    (tmp_path / "lock").mkdir()
    yield str(tmp_path)
  elif kind == "gs":
    # Asks for the kind of bucket otherwise, which the server does not know.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs", reason="needs the extra `gcs`")
    with gcs_server.serve() as server:
      options = {"token": "anon", "endpoint_url": server.url}
      monkeypatch.setitem(fsspec.config.conf, "gs", options)
      yield "gs://bucket/run"
  else:
    fsspec.register_implementation("racing", _Racing, clobber=True)
    yield f"{kind}://bucket/{tmp_path.name}"


@pytest.fixture(params=["local", "memory", "gs"])
def workdir(request, tmp_path, monkeypatch):
  """A workdir on some storage, and locks in a hurry."""
  monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)
  monkeypatch.setattr(module, "STALE_SECONDS", 0.5)
  monkeypatch.setattr(module, "POLL_SECONDS", 0.1)
  with _storage(request.param, tmp_path, monkeypatch) as url:
    yield url


def _files(workdir):
  """The contents of the lock's files, by name."""
  fs, folder = fsspec.url_to_fs(f"{workdir}/lock")
  fs.invalidate_cache()
  paths = fs.ls(folder, detail=False) if fs.exists(folder) else []
  return {path.rsplit("/")[-1]: json.loads(fs.cat_file(path)) for path in paths}


def _write(workdir, number, **content):
  fs, folder = fsspec.url_to_fs(f"{workdir}/lock")
  data = json.dumps(OTHER | content).encode()
  fs.pipe_file(f"{folder}/{number:06d}.json", data)


def test_a_second_run_is_refused(workdir):
  refused = pytest.raises(BlockingIOError, match=ME)
  with heartbeat_lock(workdir), refused, heartbeat_lock(workdir):
    pass
  for number in (2, 3):
    with heartbeat_lock(workdir):
      (name,) = _files(workdir)
      assert name == f"{number:06d}.json"
  assert _files(workdir)[name]["released"]


def test_a_killed_run_holds_it_for_a_while_only(workdir):
  _write(workdir, 7)
  start = time.monotonic()
  with heartbeat_lock(workdir):
    assert time.monotonic() - start > module.STALE_SECONDS
    (content,) = _files(workdir).values()
    assert ME in content["owner"]


@pytest.mark.parametrize("number", [1, 2])
def test_a_run_that_has_lost_it_is_interrupted(workdir, number):
  with pytest.raises(KeyboardInterrupt), heartbeat_lock(workdir):
    _write(workdir, number)
    for _ in range(1000):
      time.sleep(0.01)
  assert _files(workdir)[f"{number:06d}.json"] == OTHER


@pytest.mark.parametrize("before", ["nothing", "released", "killed"])
@pytest.mark.parametrize("workdir", ["gs"], indirect=True)
def test_one_of_many_simultaneous_starts_gets_it(workdir, before):
  for _ in range(3):
    if before != "nothing":
      _write(workdir, 9, released=before == "released")
    start, tried = (threading.Barrier(STARTERS) for _ in range(2))
    held = []

    def run(number, start=start, tried=tried, held=held):
      start.wait()
      try:
        with heartbeat_lock(workdir):
          held.append(number)
          tried.wait(20)
      except BlockingIOError:
        tried.wait(20)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(STARTERS)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert len(held) == 1
    fs, folder = fsspec.url_to_fs(f"{workdir}/lock")
    for name in _files(workdir):
      fs.rm_file(f"{folder}/{name}")


@pytest.fixture
def race(monkeypatch):
  """Sets what happens `before` or `after` a file of `racing://` is created."""
  yield lambda when, action: monkeypatch.setattr(
    _Racing, when, staticmethod(action)
  )
  _Racing.store.clear()


@pytest.mark.parametrize("workdir", ["racing"], indirect=True)
def test_who_creates_an_old_number_too_late_steps_back(workdir, race):
  _write(workdir, 1, released=True)
  race("before", lambda: _write(workdir, 5))
  with (
    pytest.raises(BlockingIOError, match=OTHER["owner"]),
    heartbeat_lock(workdir),
  ):
    pass
  assert _files(workdir)["000005.json"] == OTHER


@pytest.mark.parametrize("workdir", ["racing"], indirect=True)
def test_a_request_that_was_sent_twice_gets_it(workdir, race):
  def exists():
    raise FileExistsError

  race("after", exists)
  with heartbeat_lock(workdir):
    assert [ME in content["owner"] for content in _files(workdir).values()]


@pytest.mark.parametrize("workdir", ["racing"], indirect=True)
def test_where_creation_overwrites_the_last_start_keeps_it(workdir, race):
  race("after", lambda: _write(workdir, 1))
  with (
    pytest.raises(BlockingIOError, match=OTHER["owner"]),
    heartbeat_lock(workdir),
  ):
    pass
  assert _files(workdir) == {"000001.json": OTHER}
