"""`bench layer`: every router, plan form, group size and capacity factor."""

import argparse
import dataclasses
from typing import Any

from vmoe_study.cli import paths
from vmoe_study.nn.zoo import ROUTERS
from vmoe_study.performance.bench_shapes import LayerShape

HELP = "time an MoE layer against its experts alone and a dense MLP"
COLUMNS = {
  "router": "{}",
  "form": "{}",
  "group_images": "{}",
  "capacity": "{:g}",
  "pass": "{}",
  "ms": "{:.1f}",
  "ratio_experts_only": "{:.2f}",
  "ratio_dense": "{:.2f}",
  "ratio_peak_bytes": "{:.2f}",
  "peak_bytes": "{:,}",
  "flops": "{:.3g}",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  helps = {
    "images": "B, images in the batch",
    "tokens": "L, tokens per image",
    "width": "D, size of a token",
    "mlp_dim": "F, hidden size of an expert",
    "num_experts": "E, number of experts",
    "dtype": "dtype of tokens and experts",
  }
  choices = {"dtype": ["float32", "bfloat16"]}
  for field in dataclasses.fields(LayerShape):
    parser.add_argument(
      "--" + field.name.replace("_", "-"),
      type=field.type,
      default=field.default,
      help=helps[field.name],
      choices=choices.get(field.name),
    )
  routers = list(ROUTERS)
  several: dict[str, Any] = {"nargs": "+"}
  parser.add_argument(
    "--routers", choices=routers, default=routers, help="to compare", **several
  )
  forms = ["index", "dense"]
  parser.add_argument(
    "--forms", choices=forms, default=forms, help="plan forms", **several
  )
  parser.add_argument(
    "--groups", type=int, default=[1, 8], help="images per group", **several
  )
  parser.add_argument(
    "--capacities",
    type=float,
    default=[1, 2],
    help="capacity factors",
    **several,
  )
  parser.add_argument(
    "--rounds", type=int, default=11, help="number of timings of each"
  )
  parser.add_argument(
    "--out", type=paths.path, metavar="FILE", help="write the rows as JSON"
  )
  parser.add_argument(
    "--figure", metavar="FILE.png", help="draw the breakdown of each layer"
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  import json

  from absl import logging
  from etils import epath

  from vmoe_study.drawing.render import markdown_table
  from vmoe_study.performance.layer_bench import bench_layer

  names = [field.name for field in dataclasses.fields(LayerShape)]
  result = bench_layer(
    LayerShape(**{name: getattr(args, name) for name in names}),
    args.groups,
    args.capacities,
    args.routers,
    args.forms,
    args.rounds,
    logging.info,
  )
  rows = result["rows"]
  cells = [[fmt.format(row[k]) for k, fmt in COLUMNS.items()] for row in rows]
  print(markdown_table(list(COLUMNS), cells))
  if args.out:
    epath.Path(args.out).write_text(json.dumps(result, indent=1) + "\n")
  if args.figure:
    from vmoe_study.performance.layer_figure import draw

    draw(rows, args.figure)
  return 0
