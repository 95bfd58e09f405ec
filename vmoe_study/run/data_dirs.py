"""Data folders that only a checkpoint's own config names.

A checkpoint may come from someone else, and so may the folders that its config
names. They are read only if the user has named or confirmed them. Data sets
without a `data_dir` are in the user's own TFDS folder.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from vmoe_study.config import Config
from vmoe_study.options import OptionsError

FIELD = "data_dir"


def unconfirmed(config: Config, overrides: Sequence[str]) -> dict[str, str]:
  """The folders in a checkpoint's config that the user has not named.

  Args:
    config: config of a checkpoint, with the overrides applied.
    overrides: the user's changes, "FIELD=VALUE". A folder that one of them
      names is confirmed for all data sets.

  Returns:
    The folders by field, such as "evaluations.test.data.data_dir".
  """
  folders = dict(_folders(config.to_dict()))
  fields = [word.partition("=")[0] for word in overrides]
  named = {
    folder
    for where, folder in folders.items()
    if any(f"{where}.".startswith(f"{field}.") for field in fields)
  }
  return {
    where: folder
    for where, folder in folders.items()
    if folder not in named and not _is_default(folder)
  }


def check_confirmed(unconfirmed: Mapping[str, str], prefix: str) -> None:
  """Raises OptionsError for folders of fields that begin with the prefix."""
  problems = [
    f"config.{where}={folder!r}: the checkpoint's own config names this "
    "folder, and it may be someone else's. If you trust what is in it, give "
    "--trust-data-dirs (trust_data_dirs=True in Python), or name it: "
    f"--config.{where}=DIR."
    for where, folder in unconfirmed.items()
    if where.startswith(prefix)
  ]
  if problems:
    raise OptionsError(problems)


def _folders(values: Mapping[str, Any], prefix: str = ""):
  for name, value in values.items():
    if isinstance(value, Mapping):
      yield from _folders(value, f"{prefix}{name}.")
    elif name == FIELD and value is not None:
      yield f"{prefix}{name}", value


def _is_default(folder: str) -> bool:
  """Whether a folder is TFDS's default, which is also the user's choice."""
  from tensorflow_datasets.core import constants  # Slow to import.

  return os.path.abspath(folder) == os.path.abspath(constants.DATA_DIR)
