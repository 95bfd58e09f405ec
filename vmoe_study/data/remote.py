"""Whether remote storage answers, asked before libraries try for minutes."""

import os
import socket
from urllib.parse import urlsplit

ENDPOINTS = {"gs": ("storage.googleapis.com", 443)}
TIMEOUT_SECONDS = 10.0
# Where one of these is set, connections go another way than straight there.
DETOURS = ("https_proxy", "HTTPS_PROXY", "STORAGE_EMULATOR_HOST")
REMEDY = "check the network, the address, and the credentials for it"


def check_reachable(url: str) -> None:
  """Opens a connection to the storage behind a URL, and closes it.

  Paths of this machine, and kinds of URL without a known host, pass.

  Raises:
    OSError: no answer in `TIMEOUT_SECONDS`, or no such host.
  """
  endpoint = ENDPOINTS.get(urlsplit(url).scheme)
  if endpoint is None or any(os.environ.get(name) for name in DETOURS):
    return
  try:
    socket.create_connection(endpoint, TIMEOUT_SECONDS).close()
  except OSError as error:
    raise OSError(
      f"{url}: no connection to {endpoint[0]} ({error}); {REMEDY}"
    ) from error
