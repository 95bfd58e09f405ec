"""Remote storage that does not answer is named at once."""

import socket

import pytest

from vmoe_study.data import records, remote
from vmoe_study.data.sources import open_source


@pytest.fixture(autouse=True)
def _straight(monkeypatch):
  """No proxy in the environment."""
  for name in remote.DETOURS:
    monkeypatch.delenv(name, raising=False)


def test_a_closed_port_is_no_storage(monkeypatch):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  monkeypatch.setitem(remote.ENDPOINTS, "gs", ("localhost", port))
  message = r"gs://bucket/tfds: no connection to localhost .*check the network"
  with pytest.raises(OSError, match=message):
    open_source("imagenet2012", "train", "gs://bucket/tfds")
  monkeypatch.setenv("https_proxy", "http://localhost:1")
  remote.check_reachable("gs://bucket/tfds")  # The proxy's business.


def test_an_open_port_and_local_paths_pass(monkeypatch):
  with socket.create_server(("localhost", 0)) as server:
    monkeypatch.setitem(remote.ENDPOINTS, "gs", server.getsockname())
    remote.check_reachable("gs://bucket")
  for path in ("/some/folder", "memory://folder", "C:/folder"):
    remote.check_reachable(path)


def test_a_missing_package_is_named():
  with pytest.raises(ValueError, match=r"dask://x: .*pip install"):
    records.open_filesystem("dask://x")
