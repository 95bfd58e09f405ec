"""Measures the project on this machine: the input, the layer, the step."""

import argparse

from vmoe_study.cli import bench_input, bench_layer, bench_step

KINDS = {"input": bench_input, "layer": bench_layer, "step": bench_step}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares a subcommand for each thing that can be measured."""
  kinds = parser.add_subparsers(dest="kind", required=True)
  for name, module in KINDS.items():
    sub = kinds.add_parser(name, help=module.HELP, description=module.HELP)
    module.add_arguments(sub)


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  return KINDS[args.kind].run(args)
