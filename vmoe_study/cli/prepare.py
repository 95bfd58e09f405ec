"""`prepare`: builds data sets on disk."""

import argparse

from vmoe_study.data import builders
from vmoe_study.data.dataset_specs import DATASETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds this command's options."""
  parser.add_argument(
    "names",
    nargs="+",
    metavar="NAME",
    help=(
      f"one of {', '.join(DATASETS)}, jft_like/N (N synthetic images), or any"
      " TFDS name"
    ),
  )
  parser.add_argument("--data_dir", help="where data sets live (TFDS folder)")
  parser.add_argument("--manual_dir", help="the folder of files you supply")
  parser.add_argument(
    "--download", action="store_true", help="allow TFDS to use the network"
  )


def run(args: argparse.Namespace) -> int:
  """Builds every named data set; prints where it is and its sizes."""
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
