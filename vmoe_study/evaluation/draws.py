"""The seeds that determine which images few-shot evaluations train on.

A draw takes k images of every class with a NumPy generator, whose seed follows
from one of these rules; `seed` is that of the few-shot evaluations, not of the
run:

- "seed": seed + draw.
- "vmoe": Python's hash of (seed, draw), modulo 2**31, as in the public V-MoE
  code: with equal labels, the same images are drawn.
- "vmoe_step": the V-MoE option of a new draw at every evaluation: the hash of
  (seed, step, draw).
"""

from collections.abc import Sequence
from typing import Literal

DrawRule = Literal["seed", "vmoe", "vmoe_step"]

# The primes of CPython's hash of a tuple, a simplified xxHash64.
_PRIMES = 11400714785074694791, 14029467366897019727, 2870177450012600261
_LENGTH_MIX = 3527539
_MASK = 2**64 - 1


def generator_seed(rule: DrawRule, seed: int, draw: int, step: int) -> int:
  """The seed of a draw's random generator.

  Args:
    rule: see above.
    seed: seed of the few-shot evaluations, at least 0.
    draw: number of the draw, from 0.
    step: step of the evaluated parameters; used by "vmoe_step" only.

  >>> generator_seed("vmoe", seed=0, draw=0, step=1000)
  397586535
  """
  if rule == "seed":
    return seed + draw
  parts = (seed, step, draw) if rule == "vmoe_step" else (seed, draw)
  return tuple_hash(parts) % 2**31


def tuple_hash(values: Sequence[int]) -> int:
  """CPython's hash of a tuple of integers, in any interpreter.

  Args:
    values: each from 0 to 2**61 - 2, where an integer is its own hash.
  """
  multiplier, addend, total = _PRIMES
  offset = len(values) ^ total ^ _LENGTH_MIX
  for value in values:
    total = (total + value * addend) & _MASK
    total = (total << 31 | total >> 33) & _MASK
    total = total * multiplier & _MASK
  total = (total + offset) & _MASK
  signed = total - 2**64 if total >= 2**63 else total
  return 1546275796 if signed == -1 else signed
