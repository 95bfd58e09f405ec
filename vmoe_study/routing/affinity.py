"""From router logits to the scores by which somebody picks.

An affinity takes router logits (G, S, E), and the capacity C for those that
need it, and returns float32 scores of the same shape.
"""

import dataclasses
from typing import Literal, Protocol

import jax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vmoe_study.routing.arguments import float32
from vmoe_study.routing.sinkhorn import sinkhorn
from vmoe_study.routing.sparse_transport import sparse_transport


class Affinity(Protocol):
  """How well tokens and experts suit each other."""

  def __call__(
    self, logits: Float[ArrayLike, "G S E"], capacity: int
  ) -> Float[Array, "G S E"]: ...


@dataclasses.dataclass(frozen=True)
class Softmax:
  """Probabilities over experts."""

  def __call__(
    self, logits: Float[ArrayLike, "G S E"], capacity: int
  ) -> Float[Array, "G S E"]:
    del capacity
    return jax.nn.softmax(float32("logits", logits))


@dataclasses.dataclass(frozen=True)
class Sinkhorn:
  """The entropic transport plan (2202.01169)."""

  num_iterations: int = 20

  def __call__(
    self, logits: Float[ArrayLike, "G S E"], capacity: int
  ) -> Float[Array, "G S E"]:
    del capacity
    return sinkhorn(logits, self.num_iterations)


@dataclasses.dataclass(frozen=True)
class SparseTransport:
  """The transport plan with at most C tokens per expert (2209.15466)."""

  num_iterations: int = 20
  solver: Literal["adam", "entropic_start"] = "adam"

  def __call__(
    self, logits: Float[ArrayLike, "G S E"], capacity: int
  ) -> Float[Array, "G S E"]:
    return sparse_transport(
      jax.nn.softmax(float32("logits", logits)),
      capacity,
      solver=self.solver,
      num_iterations=self.num_iterations,
    )
