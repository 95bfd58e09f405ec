"""Recomputes a failed step and shows which numbers are not finite.

To find the cause, the config can be changed, as in
`--config.model.fields.dtype=float32`.
"""

import argparse

from vmoe_study.cli import paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "--workdir",
    type=paths.path,
    required=True,
    metavar="DIR",
    help="workdir of the run that failed",
  )
  parser.add_argument(
    "--step",
    type=int,
    metavar="N",
    help="the failed step; by default the last one",
  )
  # Makes `main` accept overrides, here of the run's own config.
  parser.set_defaults(config=None)


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  from vmoe_study.drawing.render import markdown_table
  from vmoe_study.run import failures, replay

  folder, step = failures.find_failed_step(args.workdir, args.step)
  trees = replay.replay(folder, step, args.overrides)
  print(f"Step {step}: the loss is {trees['metrics']['loss']}.")
  for kind in ("batch", "params"):
    name, value = replay.largest(trees[kind])
    print(f"The largest of {kind}: {value:.4g} in {name}.")
  if rows := list(replay.not_finite(trees)):
    print("Not finite, in the order in which they are computed:")
    print(markdown_table(["what", "path", "not finite", "of"], rows))
  else:
    print("Everything is finite.")
  return 0
