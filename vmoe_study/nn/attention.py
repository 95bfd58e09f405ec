"""Multi-head attention, with the implementation chosen by the hardware.

TPUs use `nn.fused_attention` for the shapes that it supports, and NVIDIA GPUs
cuDNN's kernel. Other shapes and devices use plain products, which train as fast
as Flax's on CPUs; `jax.nn.dot_product_attention` takes a tenth longer there.
Forward and backward pass of a layer with its norm and projections, compiled for
one v5e chip (256 images, L=197, D=768, 12 heads, bfloat16; HBM traffic includes
the padding of arrays to tiles, and ms is its time at the published bandwidth):

                      GB of HBM     ms    MiB of temporaries
  Flax                     9.43   11.5                  1735
  `jax.nn`                11.17   13.6                  1564
  `nn.fused_attention`     2.77    3.4                   605
"""

import math
import re
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vmoe_study.nn.fused_attention import (
  bundle_heads,
  fused_attention,
  is_supported,
)
from vmoe_study.routing.exchange import Exchange


class Attention(nn.Module):
  """Multi-head attention within each image.

  Parameters have the names and shapes of Flax's `MultiHeadDotProductAttention`.
  The weights are a softmax in float32, rounded to `dtype`.

  Attributes:
    num_heads: number of heads; divides D.
    dtype: dtype of the computation and the result; parameters are float32.
    qk_norm: whether queries and keys are normalised, each with a layer norm.
    exchange: the devices; each computes attention for its own images.
  """

  num_heads: int
  dtype: str = "float32"
  qk_norm: bool = False
  exchange: Exchange = Exchange()

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], queries: Float[Array, "B M D"] | None = None
  ) -> Float[Array, "B M D"]:
    """Attends from `queries` (by default `x` itself) to the tokens `x`."""
    length, width = x.shape[1:]
    heads = self.num_heads, width // self.num_heads
    projections = [
      _Projection((width,), heads, self.dtype, name=name)()
      for name in ("query", "key", "value")
    ]
    norms = None
    if self.qk_norm:
      names = "query_ln", "key_ln"
      norms = jnp.stack([_Scale(name=name)(heads[1]) for name in names])

    x = x.astype(self.dtype)
    platform = self.exchange.platform
    fits = queries is None and is_supported(length, self.num_heads, width)
    kernel, bias = _Projection(heads, (width,), self.dtype, name="out")()
    if platform == "tpu" and fits:
      y = self._fused(x, projections, norms) @ kernel
    else:
      queries = x if queries is None else queries.astype(self.dtype)
      y = self._by_heads((queries, x, x), projections, norms)
      y = jnp.einsum("BMHd,HdD->BMD", y, kernel.reshape(*heads, width))
    return y + bias[None, None].astype(y.dtype)

  def _fused(self, x, projections, norms):
    """All heads in one kernel, from one projection with reordered columns."""
    columns = bundle_heads(self.num_heads, x.shape[2]) * x.shape[2]
    columns //= self.num_heads
    kernel, bias = (
      _interleave(parts, columns) for parts in zip(*projections, strict=True)
    )

    def attend(qkv, parameters):
      return fused_attention(qkv, *parameters, self.num_heads)

    return self.exchange.map_over_devices(attend)(x @ kernel, (bias, norms))

  def _by_heads(self, inputs, projections, norms):
    """Attention with one array (B, L, heads, D_head) for each of q, k and v."""
    q, k, v = (
      _split_heads(x, *projection, self.num_heads)
      for x, projection in zip(inputs, projections, strict=True)
    )
    if norms is not None:
      q, k = (
        nn.LayerNorm(use_bias=False, dtype=self.dtype, parent=None).apply(
          {"params": {"scale": scale}}, x
        )
        for x, scale in zip((q, k), norms, strict=True)
      )
    q *= q.shape[-1] ** -0.5  # Cheaper than to scale the scores.
    if self.dtype == "bfloat16" and _has_cudnn():
      return jax.nn.dot_product_attention(
        q, k, v, scale=1.0, implementation="cudnn"
      )
    scores = jnp.einsum(
      "BMHd,BLHd->BHML", q, k, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("BHML,BLHd->BMHd", weights, v)


class _Projection(nn.Module):
  """Kernel (D_in, D_out) in `dtype` and bias (D_out,) of a dense layer.

  The parameters have the shapes and initial values of Flax's `DenseGeneral`.
  """

  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  dtype: str

  @nn.compact
  def __call__(self) -> tuple[Float[Array, "D F"], Float[Array, "F"]]:
    shape = math.prod(self.inputs), math.prod(self.outputs)

    def init(key):
      kernel = nn.initializers.xavier_uniform()(key, shape)
      return kernel.reshape(*self.inputs, *self.outputs)

    kernel = self.param("kernel", init).reshape(shape)
    bias = self.param("bias", nn.initializers.zeros, self.outputs)
    return kernel.astype(self.dtype), bias.reshape(-1)


class _Scale(nn.Module):
  """The scale of a layer norm."""

  @nn.compact
  def __call__(self, size: int) -> Float[Array, "D"]:
    return self.param("scale", nn.initializers.ones, (size,))


def _has_cudnn() -> bool:
  """Whether cuDNN's kernel runs here: on NVIDIA GPUs from Ampere on."""
  if jax.default_backend() != "gpu":
    return False
  capability = getattr(jax.devices()[0], "compute_capability", "")
  return bool(re.fullmatch(r"([89]|\d\d)\.\d", capability))


def _split_heads(x, kernel, bias, num_heads):
  """A dense layer from (B, L, D) to (B, L, heads, D_head)."""
  kernel = kernel.reshape(len(kernel), num_heads, -1)
  bias = bias.reshape(1, 1, num_heads, -1).astype(x.dtype)
  return jnp.einsum("BLD,DHd->BLHd", x, kernel) + bias


def _interleave(parts: Sequence[Array], size: int) -> Array:
  """Joins last axes, alternating between the parts every `size` columns."""
  blocks = [x.reshape(*x.shape[:-1], -1, size) for x in parts]
  return jnp.stack(blocks, axis=-2).reshape(*parts[0].shape[:-1], -1)
