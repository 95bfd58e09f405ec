"""`--config=FILE.py:ARGUMENTS` and `--config.FIELD=VALUE` of a command."""

import argparse

PREFIX = "--config."


def add_config(parser: argparse.ArgumentParser, required: bool = True) -> None:
  """Adds `--config`; overrides of its fields arrive as `args.overrides`."""
  instead = "" if required else " in place of the checkpoint's config"
  parser.add_argument(
    "--config",
    required=required,
    metavar="FILE.py[:ARGUMENTS]",
    help=f"a config file{instead}, and arguments for its get_config, such as "
    "configs/digits.py:router=soft,capacity=2; change any field with "
    "--config.FIELD=VALUE",
  )


def overrides(words: list[str]) -> list[str]:
  """ "FIELD=VALUE" of every "--config.FIELD=VALUE"."""
  return [word.removeprefix(PREFIX) for word in words]
