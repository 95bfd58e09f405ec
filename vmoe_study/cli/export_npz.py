"""Writes the parameters of a checkpoint as one `.npz` file."""

import argparse

from vmoe_study.cli import config_flags, paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_step(parser)
  parser.add_argument(
    "--out",
    type=paths.path_or_any_url,
    required=True,
    metavar="FILE.npz",
    help="file to write; local path or URL",
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  if not args.out.endswith(".npz"):
    raise ValueError(f"--out={args.out}: must end in .npz. Add the extension.")

  import jax

  from vmoe_study.checkpoint.foreign.npz import save_npz
  from vmoe_study.checkpoint.load import load_params
  from vmoe_study.run import workdir as workdir_lib

  directory = workdir_lib.checkpoints(args.workdir)
  params, _, step = load_params(directory, args.step)
  save_npz(args.out, params)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(f"{count:,} parameters of step {step} written to {args.out}")
  return 0
