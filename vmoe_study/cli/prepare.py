"""Builds data sets on disk."""

import argparse

from vmoe_study.cli import paths
from vmoe_study.data.dataset_specs import DATASETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "names",
    nargs="+",
    metavar="NAME",
    help=(
      f"one of {', '.join(DATASETS)}, jft_like/N (N synthetic images), or any"
      " TFDS name"
    ),
  )
  parser.add_argument(
    "--data-dir",
    type=paths.path,
    help="the TFDS folder, where data sets are stored",
  )
  parser.add_argument(
    "--manual-dir", type=paths.path, help="folder of files that you supply"
  )
  parser.add_argument(
    "--to",
    type=paths.path_or_any_url,
    metavar="URL",
    help="rewrite a prepared data set into this TFDS folder: shuffled once, as "
    "ArrayRecord files; after a stop, the same command continues",
  )
  parser.add_argument(
    "--download", action="store_true", help="allow TFDS to use the network"
  )


def run(args: argparse.Namespace) -> int:
  """Builds every named data set; prints its folder and sizes."""
  from absl import logging

  from vmoe_study.data import builders, rewrite  # Imports TFDS.

  if args.to:
    for name in args.names:
      folder = rewrite.rewrite(name, args.data_dir, args.to, logging.info)
      print(f"{name}: written to {folder}")
    return 0
  for name in args.names:
    builder = builders.prepare(
      name, args.data_dir, args.manual_dir, args.download
    )
    sizes = ", ".join(
      f"{split} {info.num_examples:,}"
      for split, info in builder.info.splits.items()
    )
    print(f"{name}: {sizes} examples in {builder.data_dir}")
  return 0
