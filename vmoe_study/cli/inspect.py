"""Measures and draws what the routers of a checkpoint do, as one page.

Everything is measured on the first data set under `evaluations`, in one process
that uses all of its devices.
"""

import argparse
import math

from vmoe_study.cli import config_flags, paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_checkpoint(parser)
  parser.add_argument(
    "--out",
    type=paths.path,
    required=True,
    metavar="DIR",
    help="folder for index.html, statistics.json and the pictures",
  )
  parser.add_argument(
    "--num-images",
    type=_count,
    default=2000,
    metavar="N",
    help="number of images to measure, spread over the data set (2000)",
  )
  parser.add_argument(
    "--num-shown",
    type=_count,
    default=6,
    metavar="N",
    help="number of images to show (6)",
  )
  parser.add_argument(
    "--capacities",
    type=_factors,
    default=_factors("0.25,0.5,1,2,4"),
    metavar="F,F,...",
    help="capacity factors at which sparse routers are tested (0.25,0.5,1,2,4)",
  )
  parser.add_argument(
    "--compare-with",
    type=paths.path,
    nargs="+",
    default=[],
    metavar="DIR",
    help="workdirs of other runs: writes comparison.png, the same images "
    "through the routers of all runs, with the changes of evaluations.*",
  )


def _count(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(
      f"{text!r}: must be a whole number, at least 1."
    )
  return int(text)


def _factors(text: str) -> list[float]:
  try:
    factors = sorted({float(part) for part in text.split(",") if part})
    if all(0 < factor < math.inf for factor in factors):
      return factors
  except ValueError:
    pass
  raise argparse.ArgumentTypeError(
    f"{text!r}: must be positive numbers separated by commas, as in 0.5,1,2."
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  from etils import epath

  from vmoe_study.inspection.comparison import compare
  from vmoe_study.inspection.files import save_png
  from vmoe_study.inspection.inspect import inspect
  from vmoe_study.run.checkpoint import open_checkpoint

  checkpoint = config_flags.open_checkpoint(args)
  data = [name for name in args.overrides if name.startswith("evaluations.")]
  others = [
    open_checkpoint(
      workdir, overrides=data, trust_data_dirs=args.trust_data_dirs
    )
    for workdir in args.compare_with
  ]
  inspect(
    checkpoint,
    num_images=args.num_images,
    num_shown=args.num_shown,
    capacity_factors=args.capacities,
    out=args.out,
  )
  print(f"{args.out}/index.html")
  if others:
    picture = compare([checkpoint, *others], num_images=args.num_shown)
    save_png(picture, epath.Path(args.out) / "comparison.png")
    print(f"{args.out}/comparison.png")
  return 0
