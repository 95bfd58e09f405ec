"""Checks a run before it starts and costs accelerator time.

Prints one line per finding: `ok`, `note`, `PROBLEM` with its remedy, or `not
checked` with the reason. The exit code is 1 if the run would fail. Nothing is
trained, compiled or changed; only caches of data sets are written. On a machine
without the data, --num-examples takes their place: everything but the data is
checked.
"""

import argparse

from vmoe_study.cli import config_flags, data_flags, paths

WOULD_FAIL = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_config(parser)
  parser.add_argument(
    "--workdir", type=paths.path, metavar="DIR", help="workdir of the run"
  )
  parser.add_argument(
    "--devices",
    type=int,
    metavar="N",
    help="number of devices of the run; by default those of this machine",
  )
  data_flags.add_arguments(
    parser, "then data sets are not read and need not be on this machine"
  )
  parser.add_argument(
    "--preview",
    type=paths.path,
    metavar="FILE.png",
    help="draw augmented training images with their labels to this file",
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  from vmoe_study.run.config_file import load_values

  values = load_values(args.config, args.overrides)
  if args.devices is not None and args.devices < 1:
    raise ValueError(
      f"--devices={args.devices}: must be at least 1. Give the number of "
      "devices of the run."
    )
  if args.image_shape and args.num_examples is None:
    raise ValueError(
      f"--image-shape={args.image_shape}: applies only with --num-examples. "
      "Give --num-examples=N too, or leave it out."
    )
  sizes = {
    "num_examples": data_flags.num_examples(args),
    "image_shape": data_flags.image_shape(args),
  }

  from vmoe_study.doctor.examine import examine
  from vmoe_study.doctor.finding import PROBLEM

  num_problems = 0
  findings = examine(values, args.devices, args.workdir, args.preview, **sizes)
  for finding in findings:
    num_problems += finding.status == PROBLEM
    print(finding, flush=True)
  if num_problems:
    print(f"Problems: {num_problems}. The run would fail.")
    return WOULD_FAIL
  print("No problem found.")
  return 0
