"""Locations of files: local paths, or URLs of any fsspec file system.

A path that a user writes (in a config, on a command line or as an argument)
goes through `expand` once, where it enters the package.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
  import fsspec

# Remote stores for everything that a run reads and writes.
SCHEMES = ("gs", "s3", "az")
_STORES = tuple(f"{name}:" for name in SCHEMES)
ENDPOINTS = {"gs": ("storage.googleapis.com", 443)}
TIMEOUT_SECONDS = 10.0
# If one of these is set, connections do not go straight to the endpoint.
PROXY_VARIABLES = ("https_proxy", "HTTPS_PROXY", "STORAGE_EMULATOR_HOST")
REMEDY = "Check the network, the address and the credentials."


def expand(
  where: str, path: str | os.PathLike[str], any_url: bool = False
) -> str:
  """A path or URL that a user wrote, with "~" replaced by the home folder.

  Args:
    where: the option or field, for the message of an error.
    path: the path or URL as the user wrote it.
    any_url: whether URLs of all kinds that fsspec knows are accepted, not only
      those of `SCHEMES`.

  Raises:
    ValueError: the path is empty, names an unknown user, or is a URL of another
      kind.

  >>> expand("workdir", "gs://bucket/run"), expand("workdir", "runs/first")
  ('gs://bucket/run', 'runs/first')
  """
  text = os.fspath(path)
  if not text.strip() or "\0" in text:
    raise ValueError(
      f"{where}={text!r}: must be a path. Give a folder or file; '.' is the "
      "current folder."
    )
  scheme, found, place = text.partition("://")
  if text.startswith(_STORES):  # "gs:/bucket" is a slip, and no folder here.
    is_valid = scheme in SCHEMES and place[:1] not in ("", "/")
  else:
    is_valid = not found or (any_url and scheme in _known_schemes())
  if not is_valid:
    raise ValueError(
      f"{where}={text!r}: must be a local path, or a URL that begins with "
      f"{', '.join(f'{name}://' for name in SCHEMES)} and the name of a "
      "bucket. Change it to one."
    )
  expanded = text if found else os.path.expanduser(text)
  if expanded.startswith("~"):
    raise ValueError(
      f"{where}={text!r}: {text.partition('/')[0]!r} must be '~' or '~' and "
      "the name of a user here. Correct it, or write './~' for a folder of "
      "this name."
    )
  return expanded


def _known_schemes() -> list[str]:
  from fsspec import available_protocols

  return available_protocols()


def locate(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
  """Returns the file system of a path or URL, and the path on it.

  Raises:
    ValueError: fsspec does not know this kind of URL, or a package for it is
      missing.
  """
  import fsspec

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
  answer, so this checks first. Local paths, and kinds of URL without a known
  endpoint, always pass.

  Raises:
    OSError: there is no such host, or it does not answer within
      `TIMEOUT_SECONDS`.
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
