"""Attention as one TPU kernel: the scores never leave the chip.

The scores of a head are L x L, with L up to a few hundred: whole rows fit into
on-chip memory. So the running maxima of flash attention (arXiv:2205.14135) are
not needed, and the backward pass recomputes the weights from queries and keys
alone.

One array holds queries, keys and values, (B, L, 3 D), the output of one
projection, and the kernel reads blocks of it: nothing is split, transposed or
padded in memory. A head is a range of features that need not start or end at a
multiple of 128, the number of lanes of a vector register. So features are laid
out by bundles, the fewest heads that fill whole registers:

  queries of bundle 0, keys of bundle 0, values of bundle 0, queries of bundle 1

Features are not moved between lanes either: the kernel reads all registers that
hold a part of a head, sets one factor of products over features to zero outside
of the head, and writes only the head's lanes.

Gradients, with P the weights and dO the output's gradient, all of one head:

  dV = P^T dO     dP = dO V^T     dS = P * (dP - rowsum(P * dP)) * D_head^-1/2
  dQ = dS K       dK = dS^T Q

The kernel holds P, dP and dS transposed, one column for each query: sums over
keys then run over registers instead of lanes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

_LANES = 128
_MAX_LENGTH = 640  # Longer columns of scores do not fit next to wide bundles.
_IN_FLIGHT = 4  # Heads computed at once, to keep all units of the chip busy.
_EPSILON = 1e-6  # Of the normalisation, as in Flax.


def bundle_heads(num_heads: int, width: int) -> int:
  """The fewest heads whose features fill whole registers, for width D."""
  head_dim = width // num_heads
  return math.lcm(head_dim, _LANES) // head_dim


def is_supported(length: int, num_heads: int, width: int) -> bool:
  """Whether the kernel supports L tokens of width D."""
  bundled = num_heads % bundle_heads(num_heads, width) == 0
  return bundled and length <= _MAX_LENGTH


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def fused_attention(
  qkv: Float[Array, "B L 3D"],
  bias: Float[Array, "3D"],
  norms: Float[Array, "2 D_head"] | None,
  num_heads: int,
  interpret: bool = False,
) -> Float[Array, "B L D"]:
  """Self-attention within each image.

  The factors of matrix products have the dtype of `qkv`; sums, softmax and
  normalisation are float32. Differentiable in reverse mode only.

  Args:
    qkv: queries, keys and values, in bundles of `bundle_heads` heads.
    bias: bias of these; the kernel also computes its gradient.
    norms: scales of the layer norms of queries and keys, float32; None for no
      normalisation.
    num_heads: number of heads; see `is_supported`.
    interpret: whether to emulate the kernel without a TPU, for tests.

  Returns:
    The outputs of all heads, in the dtype of `qkv`.
  """
  return _forward(qkv, bias, norms, num_heads, interpret)[0]


def _forward(qkv, bias, norms, num_heads, interpret):
  qkv += bias[None, None].astype(qkv.dtype)
  grid = _Grid(qkv, num_heads)
  outputs = [grid.tokens(1)]
  inputs = grid.rows(norms), [qkv]
  (out,) = grid.call(_forward_kernel, *inputs, outputs, 2, interpret)
  return out, (qkv, norms, bias)


def _backward(num_heads, interpret, residuals, d_out):
  qkv, norms, bias = residuals
  grid = _Grid(qkv, num_heads)
  outputs = [grid.tokens(3), grid.sums()]
  inputs = grid.rows(norms), [qkv, d_out]
  d_qkv, sums = grid.call(_backward_kernel, *inputs, outputs, 5, interpret)
  sums = sums.sum(axis=0)
  d_bias = sums[:, :3].reshape(-1).astype(bias.dtype)
  if norms is None:
    return d_qkv, d_bias, None
  d_norms = jnp.moveaxis(sums[:, 3:], 1, 0).reshape(2, -1, norms.shape[1])
  return d_qkv, d_bias, d_norms.sum(axis=1)


fused_attention.defvjp(_forward, _backward)


class _Grid:
  """Programs of one bundle of some images each, and the blocks they work on."""

  def __init__(self, qkv, num_heads):
    self._batch, self._length, width = qkv.shape
    self._width, self._dtype = width // 3, qkv.dtype
    bundle = bundle_heads(num_heads, self._width)
    size = self._width // num_heads
    self._lanes = bundle * size
    self._heads = [_Head(i * size, size, self._lanes) for i in range(bundle)]
    fitting = range(1, max(_IN_FLIGHT // bundle, 1) + 1)
    self._images = max(n for n in fitting if self._batch % n == 0)
    self._shape = self._batch // self._images, num_heads // bundle

  def tokens(self, parts):
    """Tokens of 1 or 3 parts of width D: the array, and the blocks in it."""
    shape = self._batch, self._length, parts * self._width
    block = self._images, self._length, parts * self._lanes
    spec = pl.BlockSpec(block, lambda i, j: (i, 0, j))
    return jax.ShapeDtypeStruct(shape, self._dtype), spec

  def sums(self):
    """Sums over a program's tokens, for the gradients of `bias` and `norms`."""
    block = 5, self._lanes
    spec = pl.BlockSpec((None, None, *block), lambda i, j: (i, j, 0, 0))
    return jax.ShapeDtypeStruct((*self._shape, *block), jnp.float32), spec

  def rows(self, norms):
    """The scales of every lane of a bundle, if there are any."""
    return [] if norms is None else [jnp.tile(norms, (1, len(self._heads)))]

  def call(self, kernel, rows, tokens, outputs, products, interpret):
    """Runs a kernel for every head of every image.

    Args:
      kernel: takes a head, references to `rows`, to the blocks of an image in
        `tokens`, and to those of the outputs.
      rows: arrays that every program reads.
      tokens: arrays that are read by blocks.
      outputs: output arrays, as described by `tokens` and `sums`.
      products: number of matrix products of L x L numbers of each head.
      interpret: computes without a TPU.
    """

    def body(*refs):
      for (output, _), ref in zip(outputs, refs[-len(outputs) :], strict=True):
        if output.ndim == 4:
          ref[...] = jnp.zeros_like(ref)
      for image in range(self._images):
        blocks = [ref.at[image] if len(ref.shape) == 3 else ref for ref in refs]
        for head in self._heads:
          kernel(head, *blocks)

    parts = [x.shape[2] // self._width for x in tokens]
    shapes, specs = zip(*outputs, strict=True)
    scores = self._batch * self._length**2
    cost = pl.CostEstimate(
      flops=2 * products * scores * self._width,
      transcendentals=scores * self._width // self._heads[0].size,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in [*tokens, *shapes]),
    )
    return pl.pallas_call(
      body,
      grid=self._shape,
      in_specs=[pl.BlockSpec()] * len(rows)
      + [self.tokens(n)[1] for n in parts],
      out_specs=specs,
      out_shape=shapes,
      cost_estimate=cost,
      interpret=interpret,
    )(*rows, *tokens)


def _forward_kernel(head, *refs):
  *norms, qkv_ref, out_ref = refs
  q, k = (_Factor(head, part, qkv_ref, *norms) for part in (0, 1))
  v = head.read(qkv_ref, 2)
  P = _weights(head, q.value, k.value).astype(v.dtype)
  head.write(out_ref, 0, _dot(P, v, 0, 0))


def _backward_kernel(head, *refs):
  *norms, qkv_ref, dO_ref, d_qkv_ref, sums_ref = refs
  q, k = (_Factor(head, part, qkv_ref, *norms) for part in (0, 1))
  v, dO = head.read(qkv_ref, 2), head.read(dO_ref, 0)
  P = _weights(head, q.value, k.value)
  dP = _dot(head.only(v), dO, 1, 1)
  dS = P * (dP - jnp.sum(P * dP, axis=0, keepdims=True)) * head.scale
  P, dS = P.astype(v.dtype), dS.astype(v.dtype)
  gradients = (
    q.input_gradient(_dot(dS, k.value, 0, 0), sums_ref),
    k.input_gradient(_dot(dS, q.value, 1, 0), sums_ref),
    _dot(P, dO, 1, 0),
  )
  for part, gradient in enumerate(gradients):
    head.write(d_qkv_ref, part, gradient)
    head.add_sum(sums_ref, part, gradient)


def _weights(head, q, k):
  """The softmax over keys, one column for each query."""
  scores = _dot(head.only(k), q, 1, 1)
  shifted = scores - scores.max(axis=0, keepdims=True)
  exp = jnp.exp2(shifted * (head.scale * math.log2(math.e)))
  return exp * (1 / exp.sum(axis=0, keepdims=True))


def _dot(x, y, x_axis, y_axis):
  """The product over an axis of each, summed in float32."""
  axes = ((x_axis,), (y_axis,)), ((), ())
  return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)


class _Head:
  """A range of lanes in the parts of a block, and the registers it is in."""

  def __init__(self, first: int, size: int, lanes: int):
    self.size, self.scale = size, size**-0.5
    start = first // _LANES * _LANES
    stop = -(-(first + size) // _LANES) * _LANES
    self.registers = slice(start, stop)
    self._parts = [slice(start + i * lanes, stop + i * lanes) for i in range(3)]
    self._first = first - start

  def read(self, ref, part):
    """The registers that hold the head."""
    return ref[:, self._parts[part]]

  def write(self, ref, part, x):
    """Changes the lanes of the head only."""
    old = self.read(ref, part)
    x = jnp.where(self._mask(old.shape), x.astype(old.dtype), old)
    ref[:, self._parts[part]] = x

  def add_sum(self, ref, row, x):
    """Adds the sum over tokens to a row of sums."""
    total = jnp.sum(x, axis=0, keepdims=True)
    ref[row : row + 1, self.registers] += self.only(total)

  def only(self, x):
    """Zero outside of the head."""
    return jnp.where(self._mask(x.shape), x, jnp.zeros_like(x))

  def _mask(self, shape):
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return (lane >= self._first) & (lane < self._first + self.size)


class _Factor:
  """The queries (part 0) or keys (part 1) of a head, normalised if need be."""

  def __init__(self, head, part, qkv_ref, norms_ref=None):
    self._head, self._part = head, part
    self._has_norm = norms_ref is not None
    self.value = head.read(qkv_ref, part)
    if self._has_norm:
      self._normalize(norms_ref[part : part + 1, head.registers])

  def _normalize(self, scale):
    """Layer norm: z * scale with z = (x - mean) * inverse."""
    x = self._head.only(self.value.astype(jnp.float32))
    x = self._head.only(x - self._mean(x))
    self._inverse = jax.lax.rsqrt(self._mean(x * x) + _EPSILON)
    self._z, self._scale = x * self._inverse, scale
    self.value = (self._z * scale).astype(self.value.dtype)

  def input_gradient(self, d_value, sums_ref):
    """The gradient before the norm, from that of `value`."""
    if not self._has_norm:
      return d_value
    d_value = self._head.only(d_value)
    self._head.add_sum(sums_ref, 3 + self._part, d_value * self._z)
    d_z = d_value * self._scale
    along = self._mean(d_z) + self._z * self._mean(d_z * self._z)
    return (d_z - along) * self._inverse

  def _mean(self, x):
    return x.sum(axis=1, keepdims=True) / self._head.size
