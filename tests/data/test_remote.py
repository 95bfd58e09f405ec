"""A data set on a remote store that does not answer."""

import socket

import pytest

from vmoe_study.data.sources import open_split
from vmoe_study.files import location


def test_a_store_that_refuses_connections_is_named_at_once(monkeypatch):
  for name in location.PROXY_VARIABLES:
    monkeypatch.delenv(name, raising=False)
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  monkeypatch.setitem(location.ENDPOINTS, "gs", ("localhost", port))
  with pytest.raises(OSError, match="gs://bucket/tfds: no connection to local"):
    open_split("imagenet2012", "train", "gs://bucket/tfds")
