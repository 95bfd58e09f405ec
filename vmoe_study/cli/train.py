"""Trains a model, or resumes the run of the workdir."""

import argparse
import functools
import sys

from vmoe_study.cli import config_flags, paths, process_flags
from vmoe_study.run.exit_codes import PREEMPTED
from vmoe_study.run.saved_config import CHANGEABLE_FIELDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_config(parser)
  parser.add_argument(
    "--workdir",
    type=paths.path,
    required=True,
    metavar="DIR",
    help="checkpoints and metrics go here; run the command again to resume",
  )
  parser.add_argument(
    "--allow-change",
    action="store_true",
    help="resume although the config differs from the workdir's, in: "
    + ", ".join(CHANGEABLE_FIELDS),
  )
  parser.add_argument(
    "--pictures",
    type=_count,
    default=0,
    metavar="N",
    help="for TensorBoard: after every evaluation draw N images with their "
    "patches by expert, and the distribution of the combine weights",
  )
  parser.add_argument(
    "--profile",
    type=_count,
    default=0,
    metavar="N",
    help="trace N steps after the first ten, and save which arrays are then in "
    "memory: see TensorBoard's tab Profile, or WORKDIR/plugins/profile",
  )
  parser.add_argument(
    "--verbose",
    action="store_true",
    help="also show all parameters, the sizes of the routing and the images/s "
    "that a core decodes",
  )
  process_flags.add_arguments(parser)


def _count(text: str) -> int:
  if not text.isdecimal():
    raise argparse.ArgumentTypeError(
      f"{text!r}: must be a whole number, 0 or more."
    )
  return int(text)


def check(args: argparse.Namespace) -> None:
  """Checks the config, and prints what a launcher asks resources for."""
  config = config_flags.load(args)
  print(f"num_workers={config.train.num_workers}")


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  config = config_flags.load(args)  # Errors in it cost no imports below.

  import jax

  from vmoe_study.data.freed_memory import keep_freed_memory
  from vmoe_study.run.train import train
  from vmoe_study.study import report, results

  process_flags.initialize(args)
  if jax.default_backend() == "cpu":
    keep_freed_memory()  # A fourth of the time of a step is spent on pages.
  observers = []
  if args.pictures:
    from vmoe_study.inspection.observe import RoutingPictures

    observers = [functools.partial(RoutingPictures, num_images=args.pictures)]
  result = train(
    config,
    args.workdir,
    allow_change=args.allow_change,
    verbose=args.verbose,
    observers=observers,
    profile=args.profile,
  )
  if not result.is_finished:
    print(
      f"Stopped at step {result.step} of {result.num_steps}. Run again to "
      "resume.",
      file=sys.stderr,
    )
    return PREEMPTED
  if jax.process_index() == 0:
    print(report.runs_table(results.load([args.workdir])))
  return 0
