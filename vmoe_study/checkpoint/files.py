"""Where a file is: a local path, or a URL of any file system."""

import fsspec


def locate(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
  """The file system of a path or URL, and the path there.

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
