"""Looks inside the routers of a checkpoint: numbers, pictures, one page.

Everything is measured on the first data set under `evaluations`, by one process
with all of its devices.
"""

import argparse
import io
import json
import math

from absl import logging
from etils import epath
from matplotlib.figure import Figure

from vmoe_study.cli.evaluate import open_checkpoint
from vmoe_study.inspection.inspect import (
  Subject,
  gallery,
  inspect,
  make_pictures,
)
from vmoe_study.inspection.page import page
from vmoe_study.inspection.statistics import Findings, jsonable
from vmoe_study.training.metrics import read_metrics

DOTS_PER_INCH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "--workdir", required=True, metavar="DIR", help="of the training run"
  )
  parser.add_argument(
    "--out",
    required=True,
    metavar="DIR",
    help="where index.html, statistics.json and the pictures go",
  )
  parser.add_argument(
    "--step", type=int, help="which checkpoint; by default the newest intact"
  )
  parser.add_argument(
    "--config",
    metavar="FILE.py[:ARGUMENTS]",
    help="in place of the checkpoint's config; change any field of either "
    "with --config.FIELD=VALUE",
  )
  parser.add_argument(
    "--examples",
    type=_count,
    default=2000,
    metavar="N",
    help="images to measure, spread over the data set (2000)",
  )
  parser.add_argument(
    "--images",
    type=_count,
    default=6,
    metavar="N",
    help="images to show (6)",
  )
  parser.add_argument(
    "--capacities",
    type=_factors,
    default=_factors("0.25,0.5,1,2,4"),
    metavar="F,F,...",
    help="capacity factors of sparse routers to test (0.25,0.5,1,2,4)",
  )


def _count(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(
      f"{text!r}: must be a whole number, at least 1"
    )
  return int(text)


def _factors(text: str) -> list[float]:
  try:
    factors = sorted({float(part) for part in text.split(",") if part})
    if all(0 < factor < math.inf for factor in factors):
      return factors
  except ValueError:
    pass
  raise argparse.ArgumentTypeError(
    f"{text!r}: must be positive numbers with commas between, as 0.5,1,2"
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  workdir = epath.Path(args.workdir)
  model, params, step = open_checkpoint(
    workdir, args.step, args.config, args.overrides
  )
  subject = Subject(model, params)
  logging.info("measuring up to %d images", args.examples)
  findings = inspect(
    subject, workdir.name, step, args.examples, args.capacities
  )
  logging.info("drawing")
  pictures = make_pictures(
    findings, gallery(subject, args.images), list(read_metrics(workdir))
  )
  write(epath.Path(args.out), findings, pictures)
  print(f"{args.out}/index.html")
  return 0


def write(
  folder: epath.Path, findings: Findings, pictures: dict[str, Figure]
) -> None:
  """Writes statistics.json, a PNG file per picture, and index.html."""
  folder.mkdir(parents=True, exist_ok=True)
  text = json.dumps(jsonable(findings), indent=2, allow_nan=False)
  (folder / "statistics.json").write_text(text + "\n")
  files = {name: _png(figure) for name, figure in pictures.items()}
  for name, data in files.items():
    (folder / f"{name}.png").write_bytes(data)
  (folder / "index.html").write_text(page(findings, files))


def _png(figure: Figure) -> bytes:
  file = io.BytesIO()
  figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
  return file.getvalue()
