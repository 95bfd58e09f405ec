"""`--image-shape` and `--num-examples`: sizes of data that are not at hand."""

import argparse
import re


def add_arguments(parser: argparse.ArgumentParser, when: str) -> None:
  """Declares the options.

  Args:
    parser: parser of the command.
    when: when `--num-examples` is to be given, for the help.
  """
  parser.add_argument(
    "--image-shape",
    metavar="HxWxC",
    help="size of the images; by default from the config's image operations "
    "or the data set",
  )
  parser.add_argument(
    "--num-examples",
    type=int,
    metavar="N",
    help=f"number of training images; {when}",
  )


def image_shape(args: argparse.Namespace) -> tuple[int, int, int] | None:
  """Height, width and channels; None if the option is not given.

  Raises:
    ValueError: the option is not of the form HxWxC.
  """
  text = args.image_shape
  if text is None:
    return None
  if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[13]", text):
    raise ValueError(
      f"--image-shape={text}: must be HEIGHTxWIDTHxCHANNELS with 1 or 3 "
      "channels. Write it as 224x224x3."
    )
  height, width, channels = map(int, text.split("x"))
  return height, width, channels


def num_examples(args: argparse.Namespace) -> int | None:
  """The number of training images; None if the option is not given.

  Raises:
    ValueError: the number is below 1.
  """
  if args.num_examples is not None and args.num_examples < 1:
    raise ValueError(
      f"--num-examples={args.num_examples}: must be at least 1. Give the "
      "number of training images."
    )
  return args.num_examples
