"""`bench layer`: every router, plan form, group size and capacity."""

import argparse
import dataclasses
import itertools
import json
import platform
import textwrap
from typing import Any

import jax
from absl import logging
from etils import epath

from vmoe_study.nn.router import ROUTERS
from vmoe_study.performance import layer_bench
from vmoe_study.study.render import markdown_table

HELP = "time a MoE layer against its experts alone and a dense MLP"
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
    "images": "B",
    "tokens": "L, tokens of an image",
    "width": "D",
    "mlp_dim": "F, hidden size of an expert",
    "num_experts": "E",
    "dtype": "of tokens and experts",
  }
  choices = {"dtype": ["float32", "bfloat16"]}
  for field in dataclasses.fields(layer_bench.LayerShape):
    parser.add_argument(
      "--" + field.name.replace("_", "-"),
      type=field.type,
      default=field.default,
      help=helps[field.name],
      choices=choices.get(field.name),
    )
  routers = [name for name in ROUTERS if name != "dense"]
  several: dict[str, Any] = {"nargs": "+"}
  parser.add_argument(
    "--routers", choices=routers, default=routers, help="to time", **several
  )
  forms = ["index", "dense"]
  parser.add_argument(
    "--forms", choices=forms, default=forms, help="of plans", **several
  )
  parser.add_argument(
    "--groups", type=int, default=[1, 8], help="images per group", **several
  )
  parser.add_argument(
    "--capacities", type=float, default=[1, 2], help="factors", **several
  )
  parser.add_argument("--rounds", type=int, default=11, help="timings of each")
  parser.add_argument("--out", metavar="FILE", help="write the rows as JSON")
  parser.add_argument(
    "--figure", metavar="FILE.png", help="draw the breakdown of each layer"
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  names = [f.name for f in dataclasses.fields(layer_bench.LayerShape)]
  shape = layer_bench.LayerShape(
    **{name: getattr(args, name) for name in names}
  )
  rows: list[dict[str, Any]] = []
  for group in args.groups:
    for capacity in args.capacities:
      logging.info("groups of %d images, capacity %g", group, capacity)
      found = list(
        layer_bench.cases(shape, group, capacity, args.routers, args.forms)
      )
      rows += layer_bench.measure(found, args.rounds, logging.info)
      logging.info("timing the parts of each layer")
      parts = {
        (case.row["router"], case.row["form"]): layer_bench.breakdown(
          case, args.rounds
        )
        for case in found
        if case.row
      }
      for row in rows[-2 * len(parts) :]:
        row["breakdown_ms"] = parts[row["router"], row["form"]]
  cells = [[fmt.format(row[k]) for k, fmt in COLUMNS.items()] for row in rows]
  print(markdown_table(list(COLUMNS), cells))
  if args.out:
    record = {
      "shape": dataclasses.asdict(shape),
      "device": jax.devices()[0].device_kind,
      "machine": platform.machine(),
      "jax": jax.__version__,
      "rows": rows,
    }
    epath.Path(args.out).write_text(json.dumps(record, indent=1) + "\n")
  if args.figure:
    draw(rows, args.figure)
  return 0


PARTS = ("experts", "router", "solver", "choice", "dispatch", "combine")


def draw(rows: list[dict[str, Any]], path: str) -> None:
  """Stacked bars of the forward breakdown: groups down, capacities across.

  Args:
    rows: as under "rows" in what --out writes.
    path: of the picture.
  """
  import matplotlib as mpl

  mpl.use("Agg")
  from matplotlib import pyplot as plt

  forward = [row for row in rows if row["pass"] == "forward"]
  groups = sorted({row["group_images"] for row in forward})
  capacities = sorted({row["capacity"] for row in forward})
  bars = len({(row["router"], row["form"]) for row in forward})
  width = 2.4 + 3.8 * len(capacities)
  height = 1.4 + (0.6 + 0.33 * bars) * len(groups)
  figure, axes = plt.subplots(
    len(groups),
    len(capacities),
    figsize=(width, height),
    sharex="col",
    sharey=True,
    squeeze=False,
    layout="constrained",
  )
  panels = itertools.product(groups, capacities)
  for axis, panel in zip(axes.flat, panels, strict=True):
    shown = [r for r in forward if (r["group_images"], r["capacity"]) == panel]
    _draw_panel(axis, shown)
    images = "1 image" if panel[0] == 1 else f"{panel[0]} images"
    axis.set_title(f"groups of {images}, capacity factor {panel[1]:g}")
  axes[0, 0].set_ylim(bars - 0.5, -0.5)
  handles = axes[0, 0].get_legend_handles_labels()
  figure.legend(*handles, loc="outside upper center", ncols=len(PARTS))
  figure.supxlabel(
    "milliseconds of the forward pass, parts timed one by one\n"
    "(index, dense: the form of the plan)"
  )
  figure.savefig(path, dpi=120)
  plt.close(figure)


def _draw_panel(axis, rows: list[dict[str, Any]]) -> None:
  labels = [
    textwrap.fill(f"{row['router']}, {row['form']}".replace("_", " "), 29)
    for row in rows
  ]
  left = [0.0] * len(rows)
  for part in PARTS:
    values = [row["breakdown_ms"][part] for row in rows]
    axis.barh(labels, values, left=left, label=part)
    left = [a + b for a, b in zip(left, values, strict=True)]
  axis.grid(axis="x", alpha=0.3)
