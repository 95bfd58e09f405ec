"""`--config=FILE.py:ARGUMENTS` and `--config.field=value`."""

import argparse
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags


def add_config(parser: argparse.ArgumentParser) -> None:
  """Adds `--config`; overrides of its fields reach `load` as they are."""
  parser.add_argument(
    "--config",
    required=True,
    metavar="FILE.py[:ARGUMENTS]",
    help="a config file, and arguments for its get_config, such as "
    "configs/digits.py:router=soft,capacity=2; change any field with "
    "--config.FIELD=VALUE",
  )


def load(args: argparse.Namespace) -> dict[str, Any]:
  """The config with its overrides, as plain dicts that JSON can hold.

  Raises:
    ValueError: if the file, an argument or an override is wrong.
  """
  path = args.config.partition(":")[0]
  if not Path(path).is_file():
    raise ValueError(
      f"--config={args.config}: there is no file {path}. Give the path of a "
      "config file; those of this project are in configs/."
    )
  argv = [f"--config={args.config}", *args.overrides]
  given = " ".join(argv)
  values = flags.FlagValues()
  holder = config_flags.DEFINE_config_file(
    "config", flag_values=values, sys_argv=["", *argv]
  )
  try:
    values(["", *argv])
  except (AttributeError, KeyError) as error:
    reason = " ".join(str(error.args[0]).split())
    raise ValueError(f"{given}: there is no field {reason}.") from error
  except (flags.Error, TypeError) as error:
    # An error inside the file comes with its traceback as text: its last line
    # says what is wrong.
    reason = str(error.args[0]).strip().splitlines()[-1]
    raise ValueError(f"{given}: {reason}") from error
  return holder.value.to_dict()
