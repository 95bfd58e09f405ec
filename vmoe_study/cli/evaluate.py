"""Evaluates a checkpoint: no optimizer, no training data, any devices."""

import argparse
import json

import jax
from etils import epath

from vmoe_study import distributed
from vmoe_study import workdir as workdir_lib
from vmoe_study.checkpoint.load import load_config, load_params
from vmoe_study.cli.table import markdown_table
from vmoe_study.config import parse
from vmoe_study.experiment import Model, make_evaluators


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "--workdir", required=True, metavar="DIR", help="of the training run"
  )
  parser.add_argument(
    "--step", type=int, help="which checkpoint; by default the newest intact"
  )
  parser.add_argument(
    "--out", metavar="FILE", help="also write the metrics there, as JSON"
  )
  distributed.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  distributed.initialize(args)
  directory = workdir_lib.checkpoints(args.workdir)
  record, step = load_config(directory, args.step)
  config = parse(record["config"])
  model = Model(config, tuple(record["image_shape"]))
  params, _, step = load_params(directory, step, model.params_template())
  metrics = {"step": step}
  for evaluator in make_evaluators(model):
    metrics |= evaluator.run(params)
  if jax.process_index() == 0:
    rows = [[name, f"{value:.6g}"] for name, value in metrics.items()]
    print(markdown_table(["metric", "value"], rows))
    if args.out:
      epath.Path(args.out).write_text(json.dumps(metrics, indent=2) + "\n")
  return 0
