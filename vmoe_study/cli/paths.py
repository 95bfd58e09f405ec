"""Types of options that are paths, for `add_argument`."""

import argparse
import functools

from vmoe_study.files import location


def _expand(text: str, any_url: bool) -> str:
  try:
    return location.expand("", text, any_url)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error).removeprefix("=")) from error


# A local path, or a URL of `location.SCHEMES`.
path = functools.partial(_expand, any_url=False)
# A local path, or a URL of any kind that fsspec knows.
path_or_any_url = functools.partial(_expand, any_url=True)
