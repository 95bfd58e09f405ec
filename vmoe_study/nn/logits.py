"""Rules that compute router logits: learned, and fixed ones as controls.

A rule is called within a router and uses the parameters and RNG streams of that
router. It maps tokens (G, S, D) of any float dtype to float32 logits (G, S, E).
Its dataclass fields are options of the routers that use it.
"""

import dataclasses
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class LogitsRule(Protocol):
  """Computes router logits without noise."""

  def __call__(
    self, x: Float[Array, "G S D"], num_experts: int, deterministic: bool
  ) -> Float[Array, "G S E"]: ...


@dataclasses.dataclass(frozen=True)
class LinearLogits:
  """The product of the token and a learned vector of each expert."""

  def __call__(
    self, x: Float[Array, "G S D"], num_experts: int, deterministic: bool
  ) -> Float[Array, "G S E"]:
    del deterministic
    # Named as in V-MoE's checkpoints.
    return _linear(num_experts, "dense")(x)


@dataclasses.dataclass(frozen=True)
class CosineLogits:
  """The cosine of a projected token and a learned vector of each expert.

  Divided by a learned temperature of at least 0.01 (X-MoE, arXiv:2204.09179).

  Attributes:
    projection_dim: dimensions of the projection; 0 for E / 2, as in the paper.
    initial_temperature: initial value of the temperature.
  """

  projection_dim: int = 0
  initial_temperature: float = 0.07

  def __call__(
    self, x: Float[Array, "G S D"], num_experts: int, deterministic: bool
  ) -> Float[Array, "G S E"]:
    del deterministic
    dim = self.projection_dim or -(-num_experts // 2)
    return _Cosine(num_experts, dim, self.initial_temperature, name="cosine")(x)


@dataclasses.dataclass(frozen=True)
class RandomLogits:
  """Normal random numbers, the same for all groups; no parameters.

  Every training step draws new numbers. In evaluation they are always the same,
  so a token's experts depend on its position only.
  """

  def __call__(
    self, x: Float[Array, "G S D"], num_experts: int, deterministic: bool
  ) -> Float[Array, "G S E"]:
    logits_SE = _Random(num_experts, name="random")(x.shape[1], deterministic)
    return jnp.broadcast_to(logits_SE, (len(x), *logits_SE.shape))


@dataclasses.dataclass(frozen=True)
class PositionLogits:
  """Ranks experts by the position of the token in its group; no parameters.

  Token s prefers expert s mod E, then the experts after it: the identity
  routing of Soft MoE's ablations (arXiv:2308.00951, Appendix A).

  Attributes:
    shuffled: whether positions are first mapped by a fixed permutation, which
      makes a balanced hash of the position, as in hash layers
      (arXiv:2106.04426).
  """

  shuffled: bool = False

  def __call__(
    self, x: Float[Array, "G S D"], num_experts: int, deterministic: bool
  ) -> Float[Array, "G S E"]:
    del deterministic
    place_S = jnp.arange(x.shape[1])
    if self.shuffled:
      place_S = jax.random.permutation(jax.random.key(0), place_S)
    after_SE = jnp.arange(num_experts)[None] - place_S[:, None]
    logits_SE = -jnp.float32(after_SE % num_experts)
    return jnp.broadcast_to(logits_SE, (len(x), *logits_SE.shape))


def _linear(features: int, name: str) -> nn.Dense:
  return nn.Dense(
    features,
    use_bias=False,
    dtype=jnp.float32,
    precision=jax.lax.Precision.HIGHEST,
    name=name,
  )


class _Cosine(nn.Module):
  num_experts: int
  dim: int
  initial_temperature: float

  @nn.compact
  def __call__(self, x: Float[Array, "G S D"]) -> Float[Array, "G S E"]:
    projected_GSP = _linear(self.dim, "projection")(x)
    experts_EP = self.param(
      "experts",
      nn.initializers.normal(1.0),
      (self.num_experts, self.dim),
      jnp.float32,
    )
    temperature = self.param(
      "temperature",
      nn.initializers.constant(self.initial_temperature),
      (),
      jnp.float32,
    )
    cosine_GSE = jnp.einsum(
      "GSP,EP->GSE",
      _normalize(projected_GSP),
      _normalize(experts_EP),
      precision=jax.lax.Precision.HIGHEST,
    )
    return cosine_GSE / jnp.maximum(temperature, 0.01)


def _normalize(x: Float[Array, "... P"]) -> Float[Array, "... P"]:
  squares = jnp.sum(x**2, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(squares + 1e-12)


class _Random(nn.Module):
  num_experts: int

  @nn.compact
  def __call__(
    self, num_tokens: int, deterministic: bool
  ) -> Float[Array, "S E"]:
    key = jax.random.key(0) if deterministic else self.make_rng("router")
    return jax.random.normal(key, (num_tokens, self.num_experts), jnp.float32)
