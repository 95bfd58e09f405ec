"""`bench step`: the whole training step of a config, on this machine."""

import argparse

from vmoe_study.cli import config_flags, paths

HELP = "time a config's training step: images/s, FLOPs utilisation, compilation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_config(parser)
  parser.add_argument(
    "--rounds", type=int, default=10, help="number of timings of each"
  )
  parser.add_argument(
    "--out", type=paths.path, metavar="FILE", help="write the result as JSON"
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  import json

  import jax
  from etils import epath

  from vmoe_study.data.freed_memory import keep_freed_memory
  from vmoe_study.drawing.render import markdown_table
  from vmoe_study.performance.step_bench import bench_step

  config = config_flags.load(args)
  if jax.default_backend() == "cpu":
    keep_freed_memory()  # As `train` does.
  result = bench_step(config, args.rounds)
  cells = [[name, f"{value:.4g}"] for name, value in result.items()]
  print(markdown_table(["quantity", "value"], cells))
  if args.out:
    epath.Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
  return 0
