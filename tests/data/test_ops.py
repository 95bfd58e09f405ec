"""Chains of image operations, parsed from a string."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

from vmoe_study.data.ops import OPS, parse_ops


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
  """A smooth uint8 image."""
  y, x = np.mgrid[:height, :width]
  waves = [np.sin(x / (9 + c)) + np.cos(y / (7 - c)) for c in range(channels)]
  return (127 + 60 * np.stack(waves, -1)).astype(np.uint8)


def test_a_chain_runs_in_order_and_is_deterministic_in_its_generator():
  ops = parse_ops(
    "inception_crop(24) | flip_lr|randaug(2, 15)|value_range(-1, 1)"
  )
  assert ops.is_random and ops.value_range == (-1, 1)
  a, b, c = (ops(photo(50, 60), np.random.default_rng(s)) for s in (1, 1, 2))
  assert a.shape == (24, 24, 3) and a.dtype == np.uint8
  np.testing.assert_array_equal(a, b)
  assert not np.array_equal(a, c)
  plain = parse_ops("resize_small(24)|central_crop(24)")
  assert not plain.is_random and plain.value_range == (0, 255)


def test_arguments_may_be_named():
  """An operation has all of its arguments, in order."""
  (crop,) = parse_ops("inception_crop(min_area=0.3, size=24)").steps
  assert crop.args[:2] == (24, 0.3)
  (random,) = parse_ops('randaug(2, 10, variant="authors")').steps
  assert random.args == (2, 10, "authors")


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("blur(3)", "unknown operation 'blur'. Valid names: central_crop, flip_lr"),
    (
      "resize",
      "missing a required argument: 'size'. Its form is resize(size).",
    ),
    ("resize(2, 3)", "too many positional"),
    ("resize(size)", "must have the form"),
    ("inception_crop(224, area=0.3)", "unexpected keyword argument 'area'"),
    ("resize(2.5)", "size=2.5 (float): must be int. Its form is resize(size)."),
    ("randaug(2, 9, 'author')", "variant='author' (str): must be 'pillow' or"),
    ("__import__('os').system('x')", "must have the form"),
    ("resize(8)||flip_lr", "must have the form"),
    ("resize(size=8, size=9)", "must have the form"),
    (f"resize({'(' * 9999}8)", "must have the form"),
    (f"resize({'-' * 99_999}8)", "must have the form"),
    ("resize({[]: 1})", "must have the form"),
    ("resize('8')", "size='8' (str): must be int. Its form is resize(size)."),
    ("resize(True)", "size=True (bool): must be int."),
    ("central_crop(0)", "size=0: must be from 1 to 10000. Its form is central"),
    ("resize_small(-1)", "size=-1: must be from 1 to 10000."),
    ("pad_crop(-1)", "pad=-1: must be from 0 to 10000."),
    ("inception_crop(8, 2)", "min_area=2: must be from 0 to 1."),
    ("randaug(1, -5)", "magnitude=-5: must be from 0 to 100."),
    ("value_range(None, 1)", "low=None (NoneType): must be float."),
    ("value_range(0, 1e999)", "high=inf: must be a finite number."),
    ("value_range(1, 1)", "low must be less than high. Its form is value_ra"),
    ("value_range(0, 1)|resize(8)", "must come last"),
  ],
)
def test_bad_chains_are_explained(text, message):
  with pytest.raises(ValueError) as error:
    parse_ops(text)
  assert message in str(error.value)


@pytest.mark.parametrize("name", OPS)
def test_every_argument_of_every_operation_is_checked(name):
  parameters = list(inspect.signature(OPS[name]).parameters)[1:]
  given = [p for p in parameters if p != "rng"]
  for place in range(len(given)):
    for wrong in (None, "a", [1], -(10**9), 10**9, True):
      values = [-1 if p == "low" else 1 for p in given]
      values[place] = wrong
      with pytest.raises(ValueError, match=f"{given[place]}=.*Its form is"):
        parse_ops(f"{name}({', '.join(map(repr, values))})")


def test_a_spec_is_checked_without_opencv():
  code = (
    "import sys; from vmoe_study.data.spec import DataSpec;"
    "DataSpec('x', 'train', 'resize(8)|randaug(2, 15)', 10);"
    "slow = {'cv2', 'grain', 'jax', 'tensorflow', 'tensorflow_datasets'};"
    "assert not slow & sys.modules.keys(), slow & sys.modules.keys()"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
