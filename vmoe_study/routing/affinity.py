"""Affinities: from router logits to the scores that a choice ranks.

An affinity maps router logits (G, S, E), of any float dtype, to float32 scores
of the same shape. It also receives the capacity C and the number K of experts
per token, on which the scores of sparse transport depend. Its dataclass fields
are options of the routers that use it.
"""

import dataclasses
from typing import Any, ClassVar, Literal, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vmoe_study.routing.arguments import as_float32
from vmoe_study.routing.sinkhorn import sinkhorn
from vmoe_study.routing.sparse_transport import (
  row_sparse_transport,
  sparse_transport,
)


class Affinity(Protocol):
  """Scores every pair of a token and an expert."""

  def __call__(
    self,
    logits: Float[ArrayLike, "G S E"],
    capacity: int,
    num_selected_experts: int = 1,
  ) -> Float[Array, "G S E"]: ...


@dataclasses.dataclass(frozen=True)
class _OfLogits:
  """An affinity that is a function of the logits alone, in float32."""

  function: ClassVar[Any]  # A static method, of an array.

  def __call__(
    self,
    logits: Float[ArrayLike, "G S E"],
    capacity: int,
    num_selected_experts: int = 1,
  ) -> Float[Array, "G S E"]:
    del capacity, num_selected_experts
    return self.function(as_float32("logits", logits))


@dataclasses.dataclass(frozen=True)
class Softmax(_OfLogits):
  """Softmax over the experts: the scores of a token sum to 1.

  Raises:
    ValueError: when called with logits that do not have three axes.

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.affinity import Softmax
    >>> scores = Softmax()(jnp.zeros((1, 3, 2)), capacity=2)
    >>> scores.tolist()
    [[[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]]
  """

  function = staticmethod(jax.nn.softmax)


@dataclasses.dataclass(frozen=True)
class Linear(_OfLogits):
  """The logits themselves.

  Raises:
    ValueError: when called with logits that do not have three axes.

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.affinity import Linear
    >>> Linear()(jnp.array([[[-1.0, 2.0]]]), capacity=1).tolist()
    [[[-1.0, 2.0]]]
  """

  function = staticmethod(jnp.asarray)


@dataclasses.dataclass(frozen=True)
class Sigmoid(_OfLogits):
  """The sigmoid of each logit: experts do not compete (arXiv:2412.19437).

  Raises:
    ValueError: when called with logits that do not have three axes.

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.affinity import Sigmoid
    >>> Sigmoid()(jnp.array([[[0.0, 0.0]]]), capacity=1).tolist()
    [[[0.5, 0.5]]]
  """

  function = staticmethod(jax.nn.sigmoid)


@dataclasses.dataclass(frozen=True)
class Relu(_OfLogits):
  """The positive part of each logit (arXiv:2412.14711).

  Raises:
    ValueError: when called with logits that do not have three axes.

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.affinity import Relu
    >>> Relu()(jnp.array([[[-1.0, 2.0]]]), capacity=1).tolist()
    [[[0.0, 2.0]]]
  """

  function = staticmethod(jax.nn.relu)


@dataclasses.dataclass(frozen=True)
class Sinkhorn:
  """The entropic transport plan of `sinkhorn` (arXiv:2202.01169).

  Attributes:
    num_iterations: Sinkhorn iterations.

  Raises:
    ValueError: when called with logits that do not have three axes.

  Example:
    Both tokens prefer expert 0; the plan still gives each expert one token.

    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.affinity import Sinkhorn
    >>> scores = Sinkhorn()(jnp.array([[[2.0, 0.0], [1.0, 0.0]]]), capacity=1)
    >>> scores.sum(axis=1).round(3).tolist()
    [[1.0, 1.0]]
    >>> scores.argmax(axis=2).tolist()
    [[0, 1]]
  """

  num_iterations: int = 20

  def __call__(
    self,
    logits: Float[ArrayLike, "G S E"],
    capacity: int,
    num_selected_experts: int = 1,
  ) -> Float[Array, "G S E"]:
    del capacity, num_selected_experts
    return sinkhorn(logits, self.num_iterations)


@dataclasses.dataclass(frozen=True)
class SparseTransport:
  """The `sparse_transport` plan of the softmax probabilities.

  At most C tokens per expert have a score above 0 (arXiv:2209.15466).

  Attributes:
    num_iterations: iterations of the solver.
    solver: "adam", the solver of the original routers, or "entropic_start",
      which comes closer to the optimum in the same number of iterations.

  Raises:
    ValueError: when called with logits that do not have three axes, or with a
      capacity below 1.

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.affinity import SparseTransport
    >>> logits = jnp.arange(8.0).reshape(1, 4, 2) % 3
    >>> scores = SparseTransport()(logits, capacity=2)
    >>> (scores > 0).sum(axis=1).tolist()
    [[2, 2]]
    >>> scores.sum(axis=1).round(3).tolist()
    [[2.0, 2.0]]
  """

  num_iterations: int = 20
  solver: Literal["adam", "entropic_start"] = "adam"

  def __call__(
    self,
    logits: Float[ArrayLike, "G S E"],
    capacity: int,
    num_selected_experts: int = 1,
  ) -> Float[Array, "G S E"]:
    del num_selected_experts
    return sparse_transport(
      jax.nn.softmax(as_float32("logits", logits)),
      capacity,
      solver=self.solver,
      num_iterations=self.num_iterations,
    )


@dataclasses.dataclass(frozen=True)
class RowSparseTransport:
  """The `row_sparse_transport` plan of the softmax probabilities.

  At most K experts per token have a score above 0 (arXiv:2209.15466).

  Attributes:
    num_iterations: iterations of the solver.
    solver: see `SparseTransport`.

  Raises:
    ValueError: when called with logits that do not have three axes, or with K
      below 1.

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.affinity import RowSparseTransport
    >>> logits = jnp.arange(12.0).reshape(1, 4, 3) % 5
    >>> scores = RowSparseTransport()(logits, 3, num_selected_experts=2)
    >>> (scores > 0).sum(axis=2).max().item()
    2
    >>> scores.sum(axis=2).round(3).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
  """

  num_iterations: int = 20
  solver: Literal["adam", "entropic_start"] = "adam"

  def __call__(
    self,
    logits: Float[ArrayLike, "G S E"],
    capacity: int,
    num_selected_experts: int = 1,
  ) -> Float[Array, "G S E"]:
    del capacity
    return row_sparse_transport(
      jax.nn.softmax(as_float32("logits", logits)),
      num_selected_experts,
      solver=self.solver,
      num_iterations=self.num_iterations,
    )
