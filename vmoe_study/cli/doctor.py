"""Looks for what would go wrong with a run, before it costs anything.

Prints a line per finding: `ok`, `note`, `PROBLEM` with its remedy, or `not
checked` with the reason. Exit code 1 if the run would fail. Nothing is
trained, compiled or changed, but small files of caches.
"""

import argparse

from vmoe_study.cli import config_flags

WOULD_FAIL = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_config(parser)
  parser.add_argument(
    "--workdir", metavar="DIR", help="that the run would have"
  )
  parser.add_argument(
    "--devices",
    type=int,
    metavar="N",
    help="how many the run would have; by default those of this machine",
  )
  parser.add_argument(
    "--preview",
    metavar="FILE.png",
    help="draw augmented training images with their labels there",
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  from vmoe_study.run.config_file import load_values

  values = load_values(args.config, args.overrides)
  if args.devices is not None and args.devices < 1:
    raise ValueError(f"--devices={args.devices}: must be at least 1.")

  import jax

  from vmoe_study.doctor.examine import Examination
  from vmoe_study.doctor.finding import PROBLEM

  if args.devices:
    jax.config.update("jax_platforms", "cpu")  # Those of the run are not here.
  num_devices = args.devices or jax.device_count()
  examination = Examination(values, num_devices, args.workdir, args.preview)
  num_problems = 0
  for finding in examination.run():
    num_problems += finding.status == PROBLEM
    print(finding, flush=True)
  if num_problems:
    print(f"Problems: {num_problems}. The run would fail.")
    return WOULD_FAIL
  print("No problem found.")
  return 0
