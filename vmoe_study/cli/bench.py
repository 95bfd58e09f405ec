"""Benchmarks on this machine: input, layer, step and solvers."""

import argparse

from vmoe_study.cli import bench_input, bench_layer, bench_solver, bench_step

KINDS = {
  "input": bench_input,
  "layer": bench_layer,
  "step": bench_step,
  "solver": bench_solver,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares a subcommand for each benchmark."""
  kinds = parser.add_subparsers(dest="kind", required=True)
  for name, module in KINDS.items():
    sub = kinds.add_parser(
      name,
      help=module.HELP,
      description=module.HELP,
      formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sub.set_defaults(parser=sub)
    module.add_arguments(sub)


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  return KINDS[args.kind].run(args)
