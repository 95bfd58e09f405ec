"""Estimates what a run needs on TPU slices or GPUs, and how fast it may be.

For TPUs the real training step of a config is compiled, and the program is
analysed. For GPUs its matrix products are counted. Neither a prepared data set
nor an accelerator is needed. launch/README.md says what is modelled and what is
not.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vmoe_study.cli import config_flags, data_flags, paths

if TYPE_CHECKING:
  from vmoe_study.performance.estimate import ResourceEstimate

GIB = 2**30
TIMES = {
  "compute": "compute time, lower bound",
  "hbm": "HBM time",
  "interconnect": "interconnect time, lower bound",
  "network": "network time, lower bound",
  "exposed": "exposed communication",
  "step": "step",
}
LARGER = (
  "Use a larger slice, or those of these options that are not set yet: "
  "--config.mesh.fsdp=true, "
  "--config.train.optimizer.moment_dtype=bfloat16, "
  "--config.model.fields.dtype=bfloat16, --config.model.fields.remat=full, "
  "--config.train.accumulation=2 and --config.train.batches_ahead=1."
)
MODEL = (
  "The time of a step is a model: the longer of compute and HBM traffic, each "
  "at its published peak, plus the exposed communication. Measured steps take "
  "longer (launch/README.md)."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_config(parser)
  where = parser.add_mutually_exclusive_group(required=True)
  where.add_argument(
    "--topology",
    metavar="CHIP:SHAPE",
    help="a TPU slice, such as v5e:4x4 or v5p:4x4x4",
  )
  where.add_argument(
    "--devices",
    metavar="GPU:NUMBER",
    help="GPUs, such as h100:8, by an analytic model",
  )
  parser.add_argument(
    "--slices",
    type=int,
    default=1,
    metavar="N",
    help="number of slices, connected by the data-centre network",
  )
  parser.add_argument(
    "--sweep",
    action="store_true",
    help="vary mesh, plan form, FSDP, remat, accumulation, moments and batches "
    "ahead; compile the candidates that an analytic model prefers, and "
    "recommend the fastest",
  )
  data_flags.add_arguments(
    parser,
    "needed if the config counts epochs and the data set is not prepared",
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
  from vmoe_study.performance.input_estimate import estimate_input

  config = config_flags.load(args)
  sizes = {
    "image_shape": data_flags.image_shape(args),
    "num_examples": data_flags.num_examples(args),
  }
  if args.devices and (args.sweep or args.slices != 1):
    raise ValueError(
      f"--devices={args.devices}: --sweep and --slices are for TPUs. Leave "
      "them out."
    )
  if args.devices:
    estimate = plan.plan_gpus(config, args.devices, **sizes)
    result = _show(estimate)
  elif args.sweep:
    sizes["num_slices"] = args.slices
    estimates = plan.search(config, args.topology, **sizes)
    best = plan.fastest(estimates)
    print(sweep_table(estimates))
    print(_recommendation(best))
    result = (best or estimates[0]).to_dict()
    result["candidates"] = [estimate.to_dict() for estimate in estimates]
  else:
    sizes["num_slices"] = args.slices
    estimate = plan.plan_run(config, args.topology, **sizes)
    result = _show(estimate)
  if found := estimate_input(config):
    for line in found.describe(result["images_per_second"]):
      print(line)
  if args.out:
    epath.Path(args.out).write_text(json.dumps(result, indent=2) + "\n")
  return 0


def _show(estimate: ResourceEstimate) -> dict[str, Any]:
  print(estimate_table(estimate))
  if estimate.fits:
    print(MODEL)
  else:
    print(f"The counted memory does not fit into the HBM. {LARGER}")
  return estimate.to_dict()


def estimate_table(estimate: ResourceEstimate) -> str:
  """A Markdown table of one estimate."""
  from vmoe_study.drawing.render import markdown_table

  rows = [
    ("where", _where(estimate)),
    ("compiler", estimate.compiler),
    ("mesh", _mesh(estimate)),
    ("plan form", estimate.plan_form or "-"),
    ("actual capacity factor", _factor(estimate.capacity_factor)),
    ("images per step", f"{estimate.batch_size:,}"),
    ("parameters", f"{estimate.parameters:,}"),
    ("active per token", f"{estimate.active_parameters:,}"),
    ("counted memory fits", _yes_no(estimate.fits)),
  ]
  memory = estimate.hbm_bytes
  rows += [(f"HBM: {part}", _gib(size)) for part, size in memory.items()]
  rows += [
    (f"all hosts: {part}", _gib(size))
    for part, size in estimate.host_bytes.items()
  ]
  rows.append(("model FLOPs", _tera(estimate.model_flops_per_chip)))
  if estimate.step_seconds:
    rows += _speed_rows(estimate)
  return markdown_table(["per device and step", estimate.config], rows)


def _where(estimate: ResourceEstimate) -> str:
  slices = f"{estimate.slices} x " if estimate.slices > 1 else ""
  return f"{slices}{estimate.topology}, {estimate.devices} devices"


def _speed_rows(estimate: ResourceEstimate) -> list[tuple[str, str]]:
  rows = [("FLOPs", _tera(estimate.flops_per_chip))]
  traffic = f"{_number(estimate.hbm_traffic_bytes / 1e9)} GB"
  rows.append(("HBM traffic", traffic))
  for kind, total in estimate.collectives.items():
    size = f"{_number(total['bytes'] / 1e6)} MB"
    rows.append((kind, f"{total['count']:,}, {size} in total"))
  for name, seconds in estimate.step_seconds.items():
    largest = " (bottleneck)" if name == estimate.bottleneck else ""
    rows.append((TIMES[name], f"{_number(1e3 * seconds)} ms{largest}"))
  return [
    *rows,
    ("images/s, by this model", f"{estimate.images_per_second:,.0f}"),
    ("days, by this model", _number(estimate.days)),
  ]


def sweep_table(estimates: Sequence[ResourceEstimate]) -> str:
  """A Markdown table with one row per compiled candidate."""
  from vmoe_study.drawing.render import markdown_table

  header = ["mesh", "plan form", "remat", "accumulation", "moments", "ahead"]
  header += ["fits", "HBM GiB", "TFLOP", "compute ms", "HBM ms", "exposed ms"]
  header += ["step ms", "images/s"]
  return markdown_table(header, [_sweep_row(e) for e in estimates])


def _sweep_row(estimate: ResourceEstimate) -> list[str]:
  row = [
    _mesh(estimate),
    estimate.plan_form or "-",
    estimate.remat,
    str(estimate.accumulation),
    estimate.moment_dtype,
    str(estimate.batches_ahead),
    _yes_no(estimate.fits),
    _number(estimate.hbm_bytes["total"] / GIB),
  ]
  if not estimate.step_seconds:
    return [*row, *[""] * 6]
  seconds = [
    _number(1e3 * estimate.step_seconds[name])
    for name in ("compute", "hbm", "exposed", "step")
  ]
  flops = _number(estimate.flops_per_chip / 1e12)
  return [*row, flops, *seconds, f"{estimate.images_per_second:,.0f}"]


def _recommendation(best: ResourceEstimate | None) -> str:
  if best is None:
    return f"No candidate fits into the HBM. {LARGER}"
  options = [f"--config.mesh.{k}={v}" for k, v in best.mesh.items()]
  options.append(f"--config.mesh.fsdp={str(best.fsdp).lower()}")
  options.append(f"--config.model.fields.remat={best.remat}")
  options.append(f"--config.train.accumulation={best.accumulation}")
  options.append(f"--config.train.optimizer.moment_dtype={best.moment_dtype}")
  options.append(f"--config.train.batches_ahead={best.batches_ahead}")
  if best.plan_form:
    options.append(f"--config.model.moe.options.plan_form={best.plan_form}")
  return "Fastest of these that fits: " + " ".join(options)


def _mesh(estimate: ResourceEstimate) -> str:
  sizes = " x ".join(f"{axis} {size}" for axis, size in estimate.mesh.items())
  return sizes + (", fsdp" if estimate.fsdp else "")


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
