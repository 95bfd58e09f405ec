"""`--coordinator`, `--num-processes`, `--process-id`: multi-process runs."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the options that name the other processes."""
  group = parser.add_argument_group(
    "several processes",
    "needed only outside of TPU slices, JobSets, SLURM and MPI",
  )
  group.add_argument(
    "--coordinator", metavar="HOST:PORT", help="where process 0 listens"
  )
  group.add_argument(
    "--num-processes", type=int, metavar="N", help="processes in all"
  )
  group.add_argument(
    "--process-id",
    type=int,
    metavar="ID",
    help="number of this process, from 0",
  )


def initialize(args: argparse.Namespace) -> None:
  """Connects the processes of the run, before any device is used."""
  from vmoe_study.parallel import distributed

  distributed.initialize(args.coordinator, args.num_processes, args.process_id)
