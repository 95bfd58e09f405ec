"""Sizes for the benchmarks; their fields are options of the command line.

Imports no JAX, so that `--help` is fast.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LayerShape:
  """Sizes of an MoE layer and its input.

  Attributes:
    images: B, images in the batch.
    tokens: L, tokens per image.
    width: D, size of a token.
    mlp_dim: F, hidden size of an expert.
    num_experts: E, number of experts.
    dtype: dtype of tokens and experts.
  """

  images: int = 8
  tokens: int = 196
  width: int = 384
  mlp_dim: int = 1536
  num_experts: int = 32
  dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class SolverShape:
  """Sizes of the random router logits for the transport solvers.

  Attributes:
    groups: G, groups solved at once.
    tokens: S, tokens per group.
    experts: E, number of experts.
    logit_std: standard deviation of the logits.
  """

  groups: int = 1
  tokens: int = 1568
  experts: int = 32
  logit_std: float = 1.0
