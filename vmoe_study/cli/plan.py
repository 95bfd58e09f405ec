"""Estimates what a run needs on a TPU slice and how fast it can be.

Compiles the real training step of a config for the slice. Neither a prepared
data set nor a TPU is needed. Times are lower bounds, with every resource at its
published peak (`performance.chips`).
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmoe_study.cli import config_flags, paths

if TYPE_CHECKING:
  from vmoe_study.performance.estimate import ResourceEstimate

GIB = 2**30
LARGER = (
  "Use a larger slice, or those of these options that are not set yet: "
  "--config.mesh.fsdp=true, "
  "--config.train.optimizer.moment_dtype=bfloat16, "
  "--config.model.fields.dtype=bfloat16, --config.model.fields.remat=full and "
  "--config.train.accumulation=2."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_config(parser)
  parser.add_argument(
    "--topology",
    required=True,
    metavar="CHIP:SHAPE",
    help="a slice, such as v5e:4x4 or v5p:4x4x4",
  )
  parser.add_argument(
    "--sweep",
    action="store_true",
    help="compare all meshes and plan forms, and recommend the fastest",
  )
  parser.add_argument(
    "--image-shape",
    metavar="HxWxC",
    help="size of the images; by default from the config's image operations "
    "or the data set",
  )
  parser.add_argument(
    "--num-examples",
    type=int,
    help="number of training images; needed if the config counts epochs and "
    "the data set is not prepared",
  )
  parser.add_argument(
    "--out",
    type=paths.path,
    metavar="FILE",
    help="also write the estimate to this file, as JSON",
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  import json

  from etils import epath

  from vmoe_study.performance import plan

  config = config_flags.load(args)
  sizes = {
    "image_shape": _image_shape(args.image_shape),
    "num_examples": args.num_examples,
  }
  if args.sweep:
    estimates = plan.compare_meshes(config, args.topology, **sizes)
    best = plan.fastest(estimates)
    print(sweep_table(estimates))
    print(_recommendation(best))
    result = (best or estimates[0]).to_dict()
    result["candidates"] = [estimate.to_dict() for estimate in estimates]
  else:
    estimate = plan.plan_run(config, args.topology, **sizes)
    print(estimate_table(estimate))
    if not estimate.fits:
      print(f"The step does not fit into the HBM. {LARGER} Or try --sweep.")
    result = estimate.to_dict()
  if args.out:
    epath.Path(args.out).write_text(json.dumps(result, indent=2) + "\n")
  return 0


def _image_shape(text: str | None) -> tuple[int, int, int] | None:
  if text is None:
    return None
  if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[13]", text):
    raise ValueError(
      f"--image-shape={text}: must be HEIGHTxWIDTHxCHANNELS with 1 or 3 "
      "channels. Write it as 224x224x3."
    )
  height, width, channels = map(int, text.split("x"))
  return height, width, channels


def estimate_table(estimate: ResourceEstimate) -> str:
  """A Markdown table of one estimate."""
  from vmoe_study.study.render import markdown_table

  rows = [
    ("topology", f"{estimate.topology}, {estimate.chips} chips"),
    ("mesh", _mesh(estimate)),
    ("plan form", estimate.plan_form or "-"),
    ("actual capacity factor", _factor(estimate.capacity_factor)),
    ("images per step", f"{estimate.batch_size:,}"),
    ("parameters", f"{estimate.parameters:,}"),
    ("active per token", f"{estimate.active_parameters:,}"),
    ("fits", _yes_no(estimate.fits)),
  ]
  memory = estimate.hbm_bytes
  rows += [(f"HBM: {part}", _gib(size)) for part, size in memory.items()]
  rows.append(("model FLOPs per chip", _tera(estimate.model_flops_per_chip)))
  if estimate.fits:
    rows += _speed_rows(estimate)
  return markdown_table(["per chip and step", estimate.config], rows)


def _speed_rows(estimate: ResourceEstimate) -> list[tuple[str, str]]:
  rows = [("compiled FLOPs per chip", _tera(estimate.flops_per_chip))]
  for kind, total in estimate.collectives.items():
    size = f"{_number(total['bytes'] / 1e6)} MB"
    rows.append((kind, f"{total['count']:,}, {size} in total"))
  for resource, seconds in estimate.step_seconds.items():
    bound = " (bottleneck)" if resource == estimate.bound else ""
    rows.append((f"{resource} time", f"{_number(1e3 * seconds)} ms{bound}"))
  return [
    *rows,
    ("images/s, at most", f"{estimate.images_per_second:,.0f}"),
    ("days, at least", _number(estimate.days)),
  ]


def sweep_table(estimates: Sequence[ResourceEstimate]) -> str:
  """A Markdown table with one row per mesh and plan form."""
  from vmoe_study.study.render import markdown_table

  header = ["mesh", "plan form", "fits", "HBM GiB", "TFLOP per chip"]
  header += ["compute ms", "HBM ms", "interconnect ms", "images/s"]
  return markdown_table(header, [_sweep_row(e) for e in estimates])


def _sweep_row(estimate: ResourceEstimate) -> list[str]:
  row = [
    _mesh(estimate),
    estimate.plan_form or "-",
    _yes_no(estimate.fits),
    _number(estimate.hbm_bytes["total"] / GIB),
  ]
  if not estimate.fits:
    return [*row, *[""] * 5]
  seconds = [_number(1e3 * s) for s in estimate.step_seconds.values()]
  flops = _number(estimate.flops_per_chip / 1e12)
  return [*row, flops, *seconds, f"{estimate.images_per_second:,.0f}"]


def _recommendation(best: ResourceEstimate | None) -> str:
  if best is None:
    return f"No mesh fits into the HBM. {LARGER}"
  options = [f"--config.mesh.{k}={v}" for k, v in best.mesh.items()]
  if best.plan_form:
    options.append(f"--config.model.moe.options.plan_form={best.plan_form}")
  return "Fastest that fits: " + " ".join(options)


def _mesh(estimate: ResourceEstimate) -> str:
  return " x ".join(f"{axis} {size}" for axis, size in estimate.mesh.items())


def _factor(value: float | None) -> str:
  return "-" if value is None else f"{value:.4g}"


def _yes_no(value: bool) -> str:
  return "yes" if value else "no"


def _gib(size: float) -> str:
  return f"{_number(size / GIB)} GiB"


def _tera(flops: float) -> str:
  return f"{_number(flops / 1e12)} TFLOP"


def _number(value: float) -> str:
  """At least three significant digits, never in scientific notation."""
  if value <= 0:
    return "0"
  decimals = max(2 - math.floor(math.log10(value)), 0)
  return f"{value:,.{decimals}f}"
