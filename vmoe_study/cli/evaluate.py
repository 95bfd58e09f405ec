"""Evaluates a checkpoint, without optimizer or training data, on any devices.

The checkpoint's config defines what is measured. Any of its fields can be
changed, such as the capacity of the experts or the location of the data, as
long as the parameters keep their shapes. Intervals of accuracies are 95% Wilson
intervals over images; `loss` is the negative log-likelihood in nats, `brier`
the squared error of the probabilities, and `ece` their expected calibration
error in 15 bins.
"""

import argparse
from collections.abc import Mapping

from vmoe_study.cli import config_flags, paths, process_flags


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_checkpoint(parser)
  parser.add_argument(
    "--out",
    type=paths.path,
    metavar="DIR",
    help="also write a page, index.html, with accuracy by class, confused "
    "classes, calibration and mistakes, the tables as CSV, the figures as PNG "
    "and SVG, and metrics.json; with FILE.json the metrics alone",
  )
  process_flags.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  import jax
  from absl import logging

  from vmoe_study.files.atomic import write_atomically
  from vmoe_study.files.json_text import to_json
  from vmoe_study.nn.cost import routing
  from vmoe_study.run.evaluate import evaluate

  process_flags.initialize(args)
  checkpoint = config_flags.open_checkpoint(args)
  model = checkpoint.model
  if sizes := routing(model.evaluation_module, model.image_shape):
    logging.info("%s", sizes.describe())
  to_file = args.out is not None and args.out.endswith(".json")
  metrics = evaluate(checkpoint, out=None if to_file else args.out)
  if jax.process_index() == 0:
    print(metrics_table(metrics))
    if to_file:
      write_atomically(args.out, to_json(metrics, indent=2))
    elif args.out:
      print(f"\n{args.out}/index.html")
  return 0


def metrics_table(metrics: Mapping[str, float]) -> str:
  """A Markdown table with a row per metric."""
  from vmoe_study.drawing.render import markdown_table

  rows = [[name, f"{value:.6g}"] for name, value in metrics.items()]
  return markdown_table(["metric", "value"], rows)
