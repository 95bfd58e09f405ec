"""`--config=FILE.py:ARGUMENTS` and `--config.FIELD=VALUE` of a command."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vmoe_study.cli import paths

if TYPE_CHECKING:
  from vmoe_study.config import Config
  from vmoe_study.run.checkpoint import Checkpoint

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


def add_step(parser: argparse.ArgumentParser) -> None:
  """Adds the options that name a checkpoint: `--workdir` and `--step`."""
  parser.add_argument(
    "--workdir",
    type=paths.path,
    required=True,
    metavar="DIR",
    help="workdir of the training run, or folder of an exported model",
  )
  parser.add_argument(
    "--step", type=int, help="step to read; by default the newest intact one"
  )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
  """Adds the options that `open_checkpoint` reads."""
  add_step(parser)
  add_config(parser, required=False)
  parser.add_argument(
    "--trust-data-dirs",
    action="store_true",
    help="read data from the folders that the checkpoint's own config names; "
    "without it, only from those of --config and its fields, and TFDS's",
  )


def overrides(words: Iterable[str]) -> list[str]:
  """Strips the prefix: "FIELD=VALUE" of every "--config.FIELD=VALUE"."""
  return [word.removeprefix(PREFIX) for word in words]


def load(args: argparse.Namespace) -> Config:
  """Reads the config that the options of `add_config` name."""
  from vmoe_study.run.config_file import load_config

  return load_config(args.config, args.overrides)


def open_checkpoint(args: argparse.Namespace) -> Checkpoint:
  """Opens the checkpoint that the options of `add_checkpoint` name."""
  from vmoe_study.run import checkpoint
  from vmoe_study.run.config_file import load_config

  config = args.config and load_config(args.config, args.overrides)
  overrides = () if config else args.overrides
  return checkpoint.open_checkpoint(
    args.workdir,
    args.step,
    config=config,
    overrides=overrides,
    trust_data_dirs=args.trust_data_dirs,
  )
