"""Converts a public V-MoE checkpoint into the checkpoint of a new workdir."""

import argparse

from vmoe_study.cli import config_flags, paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "--prefix",
    type=paths.path_or_any_url,
    required=True,
    metavar="PATH",
    help="common prefix of PATH.index and PATH.data-*; local path or URL",
  )
  parser.add_argument(
    "--out", type=paths.path, required=True, metavar="DIR", help="a new workdir"
  )
  parser.add_argument(
    "--image-size",
    type=int,
    metavar="PIXELS",
    help="side of square images; needed if the model has no learned positions",
  )
  parser.add_argument(
    "--config",
    metavar="FILE.py[:ARGUMENTS]",
    help="config with this model, so that `evaluate` works on DIR; by default "
    "only the model is saved, inferred from its shapes",
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  if args.overrides and not args.config:
    raise ValueError(
      f"{' '.join(args.overrides)}: there is no config to override. Give one "
      "with --config."
    )
  config = config_flags.load(args) if args.config else None

  from vmoe_study.run.import_checkpoint import import_checkpoint

  report = import_checkpoint(
    args.prefix, args.out, image_size=args.image_size, config=config
  )
  print(f"{report}\nwritten to {args.out}")
  return 0
