"""Paths and URLs, and remote stores that do not answer."""

import socket

import pytest

from vmoe_study.files import location


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
  for name in location.PROXY_VARIABLES:
    monkeypatch.delenv(name, raising=False)


def test_a_store_that_refuses_connections_is_named(monkeypatch):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  monkeypatch.setitem(location.ENDPOINTS, "gs", ("localhost", port))
  message = r"gs://bucket/tfds: no connection to localhost .*Check the network"
  with pytest.raises(OSError, match=message):
    location.check_reachable("gs://bucket/tfds")
  monkeypatch.setenv("https_proxy", "http://localhost:1")
  location.check_reachable("gs://bucket/tfds")  # The proxy may reach it.


def test_an_open_port_and_local_paths_pass(monkeypatch):
  with socket.create_server(("localhost", 0)) as server:
    monkeypatch.setitem(location.ENDPOINTS, "gs", server.getsockname())
    location.check_reachable("gs://bucket")
  for path in ("/some/folder", "memory://folder", "C:/folder"):
    location.check_reachable(path)


def test_paths_and_urls(tmp_path):
  fs, path = location.locate(str(tmp_path / "file"))
  assert (fs.protocol[0], path) == ("file", str(tmp_path / "file"))
  fs, path = location.locate("memory://folder/file")
  assert (fs.protocol, path) == ("memory", "/folder/file")


@pytest.mark.parametrize("url", ["dask://x", "nonsense://x"])
def test_a_url_that_nothing_opens(url):
  with pytest.raises(ValueError, match=f"{url}.*Give a local path"):
    location.locate(url)


@pytest.mark.parametrize(
  ("written", "expanded"),
  [
    ("~", "/home/me"),
    ("~/run", "/home/me/run"),
    ("./~/run", "./~/run"),
    ("runs/~1", "runs/~1"),
    ("gs://bucket/~/run", "gs://bucket/~/run"),
    ("gs/run", "gs/run"),
  ],
)
def test_home_folders(written, expanded, monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  assert location.expand("workdir", written) == expanded


@pytest.mark.parametrize(
  ("written", "rule"),
  [
    ("", "must be a path"),
    (" ", "must be a path"),
    ("~nobody-here/run", "must be '~' or '~' and the name of a user"),
    ("gcs://bucket/run", "a URL that begins with gs://, s3://, az:// and the"),
    ("memory://run", "a URL that begins with gs://, s3://, az:// and the name"),
    ("://run", "a URL that begins with"),
    ("gs:/bucket/run", "a URL that begins with"),
    ("gs:bucket/run", "a URL that begins with"),
    ("s3://", "and the name of a bucket"),
    ("az:///run", "and the name of a bucket"),
  ],
)
def test_what_is_no_path(written, rule):
  with pytest.raises(ValueError) as error:
    location.expand("workdir", written)
  assert f"workdir={written!r}: " in str(error.value)
  assert rule in str(error.value)
  if written == "memory://run":
    assert location.expand("path", written, any_url=True) == written
