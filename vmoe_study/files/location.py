"""Where a file is: a local path, or a URL of any fsspec file system."""

import os
import socket
from urllib.parse import urlsplit

import fsspec

ENDPOINTS = {"gs": ("storage.googleapis.com", 443)}
TIMEOUT_SECONDS = 10.0
# If one of these is set, connections do not go straight to the endpoint.
PROXY_VARIABLES = ("https_proxy", "HTTPS_PROXY", "STORAGE_EMULATOR_HOST")
REMEDY = "Check the network, the address and the credentials."


def locate(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
  """The file system of a path or URL, and the path on it.

  Raises:
    ValueError: fsspec does not know this kind of URL, or lacks a package.
  """
  try:
    return fsspec.core.url_to_fs(url)
  except (ImportError, ValueError) as error:
    raise ValueError(
      f"{url!r}: {error}. Give a local path, or a URL that an installed fsspec "
      "package opens: gs:// needs gcsfs, the extra `gcs` of this package."
    ) from error


def check_reachable(url: str) -> None:
  """Checks that the store behind a URL accepts connections.

  Libraries retry for minutes before they give up on a store that does not
  answer. Local paths, and kinds of URL without a known endpoint, always pass.

  Raises:
    OSError: there is no such host, or no answer in `TIMEOUT_SECONDS`.
  """
  endpoint = ENDPOINTS.get(urlsplit(url).scheme)
  if endpoint is None or any(os.environ.get(name) for name in PROXY_VARIABLES):
    return
  try:
    socket.create_connection(endpoint, TIMEOUT_SECONDS).close()
  except OSError as error:
    raise OSError(
      f"{url}: no connection to {endpoint[0]} ({error}). {REMEDY}"
    ) from error
