"""Says what a run needs on a TPU slice, and how fast it can be, without one.

Compiles the real training step of a config for the slice. No data set needs to
be prepared, no TPU to be there. Times are a roofline at published peak figures
(`analysis.chips`): a bound, not a promise.
"""

import argparse
import json
import math
import re

from absl import logging
from etils import epath

from vmoe_study.cli import config_flags
from vmoe_study.config import Config, parse
from vmoe_study.data import builders
from vmoe_study.data.augment import parse_ops
from vmoe_study.data.sources import open_source
from vmoe_study.performance import plan as planning
from vmoe_study.study.render import markdown_table

SIZING_OPS = ("resize", "central_crop", "inception_crop")
GIB = 2**30
LARGER = (
  "Take a larger slice, or what is not set yet of --config.mesh.fsdp=true, "
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
    help="a slice, as v5e:4x4 or v5p:4x4x4",
  )
  parser.add_argument(
    "--sweep",
    action="store_true",
    help="compare all meshes and forms of plan, and recommend the fastest",
  )
  parser.add_argument(
    "--image-shape",
    metavar="HxWxC",
    help="by default what the data's operations or the data set say",
  )
  parser.add_argument(
    "--num-examples",
    type=int,
    help="training images, where the config counts epochs and the data set "
    "is not prepared",
  )
  parser.add_argument(
    "--out", metavar="FILE", help="also write the report there, as JSON"
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  config = parse(config_flags.load(args))
  shape = _image_shape(config, args.image_shape)
  num_examples = _num_examples(config, args.num_examples)
  target = planning.open_target(args.topology)
  if args.sweep:
    report = _sweep(config, target, shape, num_examples)
    print(sweep_table(report["candidates"]))
    print(_recommendation(report))
  else:
    report = planning.plan(config, target, shape, num_examples)
    print(report_table(report))
    if not report["fits"]:
      print(f"It does not fit. {LARGER} Or try --sweep.")
  if args.out:
    epath.Path(args.out).write_text(json.dumps(report, indent=2) + "\n")
  return 0


def _sweep(config: Config, target, shape, num_examples: int) -> planning.Report:
  """The report of the fastest candidate, and of all candidates in it."""
  configs = list(planning.variants(config, len(target.devices)))
  if not configs:
    planning.plan(config, target, shape, num_examples)  # Says what is wrong.
  reports = []
  for number, candidate in enumerate(configs, 1):
    logging.info("plan %d of %d: %s", number, len(configs), candidate.mesh)
    reports.append(planning.plan(candidate, target, shape, num_examples))
  best = planning.fastest(reports)
  return {**(best or reports[0]), "candidates": reports}


def report_table(report: planning.Report) -> str:
  """A report as people read it: a Markdown table."""
  rows = [
    ("topology", f"{report['topology']}, {report['chips']} chips"),
    ("mesh", _mesh(report)),
    ("form of plan", report["plan_form"] or "-"),
    ("images per step", f"{report['batch_size']:,}"),
    ("parameters", f"{report['parameters']:,}"),
    ("active per token", f"{report['active_parameters']:,}"),
    ("fits", _yes_no(report["fits"])),
  ]
  memory = report["hbm_bytes"]
  rows += [(f"HBM: {part}", _gib(size)) for part, size in memory.items()]
  rows.append(("model FLOPs per chip", _tera(report["model_flops_per_chip"])))
  if report["fits"]:
    rows += _speed_rows(report)
  return markdown_table(["per chip and step", report["config"]], rows)


def _speed_rows(report: planning.Report) -> list[tuple[str, str]]:
  rows = [("compiled FLOPs per chip", _tera(report["flops_per_chip"]))]
  for kind, total in report["collectives"].items():
    size = f"{_figure(total['bytes'] / 1e6)} MB"
    rows.append((kind, f"{total['count']:,} of {size} together"))
  for resource, seconds in report["step_seconds"].items():
    bound = " (binds)" if resource == report["bound"] else ""
    rows.append((f"{resource} time", f"{_figure(1e3 * seconds)} ms{bound}"))
  return [
    *rows,
    ("images/s, at most", f"{report['images_per_second']:,.0f}"),
    ("days, at least", _figure(report["days"])),
  ]


def sweep_table(reports: list[planning.Report]) -> str:
  """A row per candidate."""
  header = ["mesh", "plan", "fits", "HBM GiB", "TFLOP per chip"]
  header += ["compute ms", "HBM ms", "interconnect ms", "images/s"]
  return markdown_table(header, [_sweep_row(report) for report in reports])


def _sweep_row(report: planning.Report) -> list[str]:
  row = [
    _mesh(report),
    report["plan_form"] or "-",
    _yes_no(report["fits"]),
    _figure(report["hbm_bytes"]["total"] / GIB),
  ]
  if not report["fits"]:
    return [*row, *[""] * 5]
  seconds = [_figure(1e3 * s) for s in report["step_seconds"].values()]
  flops = _figure(report["flops_per_chip"] / 1e12)
  return [*row, flops, *seconds, f"{report['images_per_second']:,.0f}"]


def _recommendation(report: planning.Report) -> str:
  if not report["fits"]:
    return f"Nothing fits. {LARGER}"
  options = [f"--config.mesh.{k}={v}" for k, v in report["mesh"].items()]
  if report["plan_form"]:
    form = report["plan_form"]
    options.append(f"--config.model.moe.options.plan_form={form}")
  return "Fastest that fits: " + " ".join(options)


def _image_shape(config: Config, given: str | None) -> tuple[int, int, int]:
  """From the option, the operations, or the builder of the data set."""
  if given is not None:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[13]", given):
      raise ValueError(
        f"--image-shape={given}: must be HEIGHTxWIDTHxCHANNELS with 1 or 3 "
        "channels, as 224x224x3."
      )
    height, width, channels = map(int, given.split("x"))
    return height, width, channels
  try:
    info = builders.make_builder(config.data.name, config.data.data_dir).info
    shape = info.features["image"].shape
  except (builders.MissingDataError, KeyError):
    shape = (None, None, 3)
  sizes = [
    step.args[0]
    for step in parse_ops(config.data.ops).steps
    if step.name in SIZING_OPS
  ]
  height, width = [sizes[-1]] * 2 if sizes else shape[:2]
  if height is None:
    raise ValueError(
      f"The operations {config.data.ops!r} leave the size of images open: give "
      "--image-shape, as 224x224x3."
    )
  return height, width, shape[2]


def _num_examples(config: Config, given: int | None) -> int:
  """Of the training data; counted only if the config counts epochs."""
  if given is not None or config.train.num_steps:
    return given or 0
  data = config.data
  try:
    return len(
      open_source(data.name, data.split, data.data_dir, data.label_key)
    )
  except builders.MissingDataError as error:
    raise ValueError(
      f"train.num_epochs={config.train.num_epochs}: how many steps that makes "
      f"is not known, as data set {data.name!r} is not prepared: give "
      "--num-examples."
    ) from error


def _mesh(report: planning.Report) -> str:
  return " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items())


def _yes_no(value: bool) -> str:
  return "yes" if value else "no"


def _gib(size: float) -> str:
  return f"{_figure(size / GIB)} GiB"


def _tera(flops: float) -> str:
  return f"{_figure(flops / 1e12)} TFLOP"


def _figure(number: float) -> str:
  """Three digits that count, or more; never a power of ten."""
  if number <= 0:
    return "0"
  decimals = max(2 - math.floor(math.log10(number)), 0)
  return f"{number:,.{decimals}f}"
