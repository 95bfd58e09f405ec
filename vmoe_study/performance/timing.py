"""Interleaved timings: ratios within a round cancel the machine's drift."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Float


def interleaved_seconds(
  calls: Mapping[str, Callable[[], object]],
  rounds: int,
  on_round: Callable[[int], None] = lambda _: None,
) -> dict[str, Float[np.ndarray, "rounds"]]:
  """Times functions in turn, A B C A B C ..., after one warm-up call of each.

  Args:
    calls: functions by name; the timer waits for the arrays that they return.
    rounds: number of timings of each function.
    on_round: called with the round's number after each round.
  """
  for call in calls.values():
    jax.block_until_ready(call())
  seconds = {name: np.zeros(rounds) for name in calls}
  for i in range(rounds):
    for name, call in calls.items():
      start = time.perf_counter()
      jax.block_until_ready(call())
      seconds[name][i] = time.perf_counter() - start
    on_round(i)
  return seconds


def paired_ratio(
  seconds: Mapping[str, Float[np.ndarray, "rounds"]], name: str, base: str
) -> float:
  """Median over rounds of the time of `name` divided by that of `base`."""
  return float(np.median(seconds[name] / seconds[base]))
