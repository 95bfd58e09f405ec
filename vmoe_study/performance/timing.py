"""Paired timings: what machines drift by, a ratio of one run does not show."""

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
  """Times functions in turn, A B C A B C ..., after one call of each.

  Args:
    calls: by name; each returns arrays, which are waited for.
    rounds: how often each is timed.
    on_round: called after each round, to show progress.
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
  """Median over rounds of the time of `name` over that of `base`."""
  return float(np.median(seconds[name] / seconds[base]))
