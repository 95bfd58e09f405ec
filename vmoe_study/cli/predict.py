"""Predicts the classes of images, with probabilities.

Images are given as files, folders (searched recursively) and URLs that fsspec
reads; "-" reads paths from standard input, one per line. The class names and
the image operations come from the checkpoint. Runs in one process, on all of
its devices. An image that cannot be read is reported and left out, and the exit
code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from vmoe_study.cli import config_flags, paths

if TYPE_CHECKING:
  import numpy as np

  from vmoe_study.run.checkpoint import Checkpoint
  from vmoe_study.run.predict import Prediction, Predictor

STANDARD_STREAM = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  config_flags.add_checkpoint(parser)
  parser.add_argument(
    "images",
    nargs="+",
    metavar="IMAGE",
    help="image file, folder or URL; - for paths from standard input",
  )
  parser.add_argument(
    "--out",
    type=paths.path,
    metavar="FILE",
    help="write JSON lines to this file, or with - to standard output, in "
    "place of a table",
  )
  parser.add_argument(
    "--top",
    type=_count,
    default=5,
    metavar="N",
    help="number of classes to give per image, the most probable (5)",
  )
  parser.add_argument(
    "--batch-size",
    type=_count,
    default=64,
    metavar="N",
    help="images at a time, rounded up to whole routing groups (64)",
  )
  parser.add_argument(
    "--ops",
    metavar="OPS",
    help="image operations, such as 'resize(224)|value_range(-1, 1)'; by "
    "default those of the first data set under `evaluations`",
  )
  parser.add_argument(
    "--features",
    type=paths.path,
    metavar="FILE.npz",
    help="also write the features before the head, `features` (N, width), and "
    "`names`",
  )
  parser.add_argument(
    "--explain",
    type=paths.path,
    metavar="DIR",
    help="also draw the images into this folder, with patches coloured by "
    "expert",
  )


def _count(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(
      f"{text!r}: must be a whole number, at least 1."
    )
  return int(text)


def check(args: argparse.Namespace) -> None:
  """Checks the config and the operations."""
  from vmoe_study.data.ops import parse_ops

  if args.config:
    config_flags.load(args)
  if args.ops is not None:
    parse_ops(args.ops)


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  from absl import logging

  from vmoe_study.console.progress import Progress
  from vmoe_study.data.image_files import name_images
  from vmoe_study.run.exit_codes import FAILED

  named = name_images(_paths(args.images))
  checkpoint = config_flags.open_checkpoint(args)
  predictor = _predictor(checkpoint, args)
  explainer = None
  if args.explain:
    from vmoe_study.inspection.explain import Explainer

    explainer = Explainer(checkpoint.model, checkpoint.variables, args.explain)
  names: list[str] = []
  features: list[np.ndarray] = []
  progress = Progress("predicting", len(named), "images")
  with progress, _output(args) as write:
    for batch in predictor.batches(named):
      for error in batch.errors:
        logging.warning("left out: %s", error)
      write(predictor.predict(batch))
      names += batch.names
      if args.features:
        features.append(predictor.features(batch))
      if explainer:
        explainer.write(predictor.to_devices(batch), batch.names)
      progress.advance(len(batch.names) + len(batch.errors))
  if args.features:
    _save_features(args.features, names, features)
  if failed := len(named) - len(names):
    logging.warning("%d of %d images could not be used", failed, len(named))
  return FAILED if failed else 0


def _paths(words: Sequence[str]) -> Iterator[str]:
  for word in words:
    if word == STANDARD_STREAM:
      yield from filter(None, sys.stdin.read().splitlines())
    else:
      yield word


def _predictor(checkpoint: Checkpoint, args: argparse.Namespace) -> Predictor:
  from absl import logging

  from vmoe_study.run.predict import Predictor

  predictor = Predictor(
    checkpoint.model,
    checkpoint.variables,
    checkpoint.class_names,
    ops=args.ops,
    batch_size=args.batch_size,
  )
  source = "of the checkpoint's evaluation" if args.ops is None else "given"
  logging.info("image operations, %s: %s", source, predictor.ops)
  if not checkpoint.class_names:
    logging.info("the checkpoint has no class names: classes are numbers")
  return predictor


@contextlib.contextmanager
def _output(
  args: argparse.Namespace,
) -> Iterator[Callable[[Sequence[Prediction]], object]]:
  """Yields the writer of predictions: a table at the end, or JSON lines."""
  from vmoe_study.drawing.render import markdown_table
  from vmoe_study.files.atomic import open_atomically

  if args.out is None:
    rows: list[list[str]] = []
    yield lambda found: rows.extend(_row(p, args.top) for p in found)
    width = max(map(len, rows), default=1)
    header = ["image", *(f"top {place}" for place in range(1, width))]
    print(markdown_table(header, rows))
  elif args.out == STANDARD_STREAM:
    yield lambda found: print(_lines(found, args.top), end="", flush=True)
  else:
    with open_atomically(args.out) as file:
      yield lambda found: file.write(_lines(found, args.top).encode())


def _row(prediction: Prediction, top: int) -> list[str]:
  classes = prediction.top(top)
  return [prediction.name, *(f"{label} {p:.1%}" for label, p in classes)]


def _lines(predictions: Sequence[Prediction], top: int) -> str:
  from vmoe_study.files.json_text import to_json

  return "".join(
    to_json(
      {
        "image": prediction.name,
        "classes": [
          {"class": label, "probability": round(probability, 6)}
          for label, probability in prediction.top(top)
        ],
      }
    )
    for prediction in predictions
  )


def _save_features(
  file: str, names: Sequence[str], features: Sequence[np.ndarray]
) -> None:
  import numpy as np

  from vmoe_study.files.atomic import write_atomically

  content = io.BytesIO()
  np.savez(content, names=names, features=np.concatenate(features))
  write_atomically(file, content.getvalue())
