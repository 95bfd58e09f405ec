"""Exports a checkpoint, in the format that the name of --out implies.

  DIR              the whole model as model hubs hold it: model.safetensors,
                   config.json, README.md; `evaluate`, `predict`, `inspect` and
                   open_checkpoint take it in place of a workdir
  FILE.stablehlo   a program, from images to logits, with the parameters inside:
                   jax.export.deserialize(bytearray(content)).call(images)
  FILE.npz         the parameters alone, unless they are learned positions of
                   images that are not square

The program takes uint8 images after the image operations of the first
evaluation, in batches of any number of routing groups, and runs on CPUs, GPUs
and TPUs. It needs jax, numpy and flatbuffers, but not this package. The config
is written as it is, with the paths in it. The export itself runs on the CPU.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from vmoe_study.cli import config_flags, paths

if TYPE_CHECKING:
  from vmoe_study.run.checkpoint import Checkpoint

NPZ, PROGRAM = ".npz", ".stablehlo"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_step(parser)
  config_flags.add_config(parser, required=False)
  parser.set_defaults(trust_data_dirs=False)  # No data are read.
  parser.add_argument(
    "--out",
    type=paths.path_or_any_url,
    required=True,
    metavar="DIR|FILE",
    help="a new folder, FILE.stablehlo or FILE.npz; local path or URL",
  )
  parser.add_argument(
    "--half",
    action="store_true",
    help="of a folder: store parameters as float16, in half the size; they are "
    "rounded to 11 bits, and read as float32",
  )


def check(args: argparse.Namespace) -> None:
  """Checks the name of the output, and the config."""
  extension = os.path.splitext(args.out)[1]
  if extension[1:].isidentifier() and extension not in (NPZ, PROGRAM):
    raise ValueError(
      f"--out={args.out}: must be a folder, or end in {PROGRAM} or {NPZ}. Add "
      "'/' if it is a folder."
    )
  if extension == NPZ and (args.config or args.overrides):
    raise ValueError(
      f"--out={args.out}: has parameters only, which a config does not change. "
      "Leave out --config and its fields."
    )
  if args.half and extension in (NPZ, PROGRAM):
    raise ValueError(
      f"--half: must go with a folder, not with --out={args.out}. Leave it out."
    )
  if args.config:
    config_flags.load(args)


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  check(args)

  import jax

  jax.config.update("jax_platforms", "cpu")
  if args.out.endswith(NPZ):
    _write_npz(args)
    return 0
  checkpoint = config_flags.open_checkpoint(args)
  if args.out.endswith(PROGRAM):
    _write_program(args.out, checkpoint)
    return 0

  from vmoe_study.run.export import export_model

  export_model(checkpoint, args.out.rstrip("/"), half=args.half)
  _report(checkpoint.params, checkpoint.step, args.out)
  return 0


def _write_npz(args: argparse.Namespace) -> None:
  from vmoe_study.checkpoint.foreign.npz import save_npz
  from vmoe_study.checkpoint.load import load_params
  from vmoe_study.run import workdir as workdir_lib
  from vmoe_study.run.export import check_positions
  from vmoe_study.run.metadata import Metadata

  directory = workdir_lib.checkpoints(args.workdir)
  params, metadata, step = load_params(directory, args.step)
  check_positions(args.out, params, Metadata.from_dict(metadata).image_shape)
  save_npz(args.out, params)
  _report(params, step, args.out)


def _write_program(out: str, checkpoint: Checkpoint) -> None:
  from vmoe_study.files.atomic import write_atomically
  from vmoe_study.run.export import describe_classes
  from vmoe_study.run.predict import evaluation_ops
  from vmoe_study.run.program import make_program, serialize

  program = make_program(checkpoint)
  write_atomically(out, serialize(program))
  _report(checkpoint.params, checkpoint.step, out)
  ((images,), (logits,)) = program.in_avals, program.out_avals
  ops = evaluation_ops(checkpoint.config)
  print(f"takes {images.str_short()}, after {ops}; the range is applied inside")
  print(f"gives {logits.str_short()}, {describe_classes(checkpoint)}")


def _report(params, step: int, out: str) -> None:
  import jax

  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  print(f"{count:,} parameters of step {step} written to {out}")
