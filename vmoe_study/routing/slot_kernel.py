"""Dispatch and combine as TPU kernels: routing tensors never leave the chip.

A kernel makes the 0/1 tensor of a group, (S, E C), from the tokens in its
slots, and multiplies by it, as `DensePlan` does. Slots are rows of experts in
the order in which they are sent, so that nothing is transposed, sliced or
padded in memory. Groups are split into parts, each with its own kernel, so that
one part is in transit while the next is dispatched or combined. Kernels read
their part of the tokens, and write it, in place.

A program works on 8 groups, one for each sublane of a vector register, and a
range of features. In rows of an expert, blocks of 8 groups have the order C 8.

With x the tokens, y the rows of slots, and ' for gradients:

  dispatch   y = Dispatch^T x      x' = Dispatch y'
  combine    x = Combine y         y' = Combine^T x'
             weights'[e,c] = sum_s Dispatch[s,e,c] * (x' y^T)[s,e,c]
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from vmoe_study.routing.plan import IndexPlan

_GROUPS = 8  # Of a program.
_LANES = 128
_VMEM_BYTES = 10 * 2**20  # Of the 16 MiB that a kernel may use by default.


def is_supported(plan: IndexPlan, width: int, itemsize: int) -> bool:
  """Whether the kernels support a plan for D features of some bytes each."""
  num_slots = plan.tokens.shape[1] * plan.tokens.shape[2]
  sizes = plan.num_tokens, num_slots, width, itemsize
  return plan.num_groups % _GROUPS == 0 and _block_width(*sizes) > 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def dispatch(
  x: Float[Array, "G S D"],
  tokens: Int[Array, "G E C"],
  num_tokens: int,
  parts: int,
  interpret: bool = False,
) -> list[Float[Array, "E N D"]]:
  """Rows of all slots. Differentiable in reverse mode only.

  Args:
    x: tokens of any float dtype.
    tokens: as in an `IndexPlan`.
    num_tokens: S.
    parts: number of parts into which groups are split: `RoutingPlan.part`; each
      has a multiple of 8 groups.
    interpret: whether to emulate the kernel without a TPU, for tests.

  Returns:
    For each part N = G * C / parts rows of every expert; zero for empty slots.
  """
  sizes = _Sizes(tokens, num_tokens, parts, x, interpret)
  rows = []
  for part in range(parts):
    inputs = [sizes.plan(part, tokens), sizes.tokens(part, x)]
    rows += sizes.call(_dispatch_kernel, inputs, [sizes.rows()])
  return rows


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def combine(
  rows: list[Float[Array, "E N D"]],
  tokens: Int[Array, "G E C"],
  weights: Float[Array, "G E C"],
  num_tokens: int,
  interpret: bool = False,
) -> Float[Array, "G S D"]:
  """Sums the weighted rows of each token, in float32.

  The weights are rounded to the dtype of the rows, as those of a `DensePlan`.
  Differentiable in reverse mode only.

  Args:
    rows: of each part, in the order of `dispatch`.
    tokens: as in an `IndexPlan`.
    weights: as in an `IndexPlan`.
    num_tokens: S.
    interpret: whether to emulate the kernel without a TPU, for tests.
  """
  sizes = _Sizes(tokens, num_tokens, len(rows), rows[0], interpret)
  found: list[Array] = []
  for part, of_part in enumerate(rows):
    inputs = [sizes.plan(part, tokens), sizes.plan(part, weights)]
    inputs.append(sizes.rows(of_part))
    found = sizes.call(_combine_kernel, inputs, [sizes.tokens(part)], found)
  return found[0]


def _dispatch_forward(x, tokens, num_tokens, parts, interpret):
  return dispatch(x, tokens, num_tokens, parts, interpret), tokens


def _dispatch_backward(num_tokens, parts, interpret, tokens, d_rows):
  del parts
  ones = jnp.ones(tokens.shape, jnp.float32)
  return combine(d_rows, tokens, ones, num_tokens, interpret), None


def _combine_forward(rows, tokens, weights, num_tokens, interpret):
  x = combine(rows, tokens, weights, num_tokens, interpret)
  return x, (rows, tokens, weights)


def _combine_backward(num_tokens, interpret, residuals, d_x):
  rows, tokens, weights = residuals
  sizes = _Sizes(tokens, num_tokens, len(rows), d_x, interpret)
  d_weights, d_rows = [], []
  for part, of_part in enumerate(rows):
    inputs = [sizes.plan(part, tokens), sizes.plan(part, weights)]
    inputs += [sizes.tokens(part, d_x), sizes.rows(of_part)]
    outputs = [sizes.slots(), sizes.rows()]
    d_slots, d_of_part = sizes.call(_gradient_kernel, inputs, outputs)
    d_weights.append(d_slots)
    d_rows.append(d_of_part)
  return d_rows, None, jnp.concatenate(d_weights).reshape(weights.shape)


dispatch.defvjp(_dispatch_forward, _dispatch_backward)
combine.defvjp(_combine_forward, _combine_backward)


def _block_width(
  num_tokens: int, num_slots: int, width: int, itemsize: int
) -> int:
  """The most features of a program that fit into its memory; 0 if none do."""
  found = 0
  for size in range(_LANES, width + 1, _LANES):
    # Tokens, rows and their gradients, each twice, and rows in float32.
    blocks = itemsize * (2 * num_tokens + 4 * num_slots) + 4 * num_slots
    tensors = 4 * 4 * num_tokens * num_slots
    if width % size == 0 and _GROUPS * size * blocks + tensors <= _VMEM_BYTES:
      found = size
  return found


class _Block(NamedTuple):
  """What a kernel reads or writes: an array, and its blocks.

  Attributes:
    array: the array to read, or the shape of the array to write.
    spec: the blocks of the programs.
    bytes: bytes in all blocks.
  """

  array: Array | jax.ShapeDtypeStruct
  spec: pl.BlockSpec
  bytes: int


class _Sizes:
  """The kernels of one plan: their programs, and the blocks they work on."""

  def __init__(self, tokens_GEC, num_tokens, parts, x, interpret):
    num_groups, num_experts, capacity = tokens_GEC.shape
    num_slots, width = num_experts * capacity, x.shape[-1]
    block = _block_width(num_tokens, num_slots, width, x.dtype.itemsize)
    self._grid = num_groups // parts // _GROUPS, width // block
    self._capacity, self._num_slots, self._block = capacity, num_slots, block
    rows = num_experts, num_groups // parts * capacity, width
    self._rows = jax.ShapeDtypeStruct(rows, x.dtype)
    x = jax.ShapeDtypeStruct((num_groups, num_tokens, width), x.dtype)
    self._tokens, self._parts, self._interpret = x, parts, interpret
    self._flops = 2 * x.size // parts * num_slots
    scratch = block // _LANES, num_slots * _GROUPS, _LANES
    self._scratch = pltpu.VMEM(scratch, jnp.float32)

  def plan(self, part, x_GEC):
    """The slots of a part, to be read as (groups, E C)."""
    first, x_GN = part * self._grid[0], x_GEC.reshape(len(x_GEC), -1)
    shape = _GROUPS, self._num_slots
    spec = pl.BlockSpec(shape, lambda i, j: (first + i, 0))
    return _Block(x_GN, spec, x_GN.size * 4 // self._parts)

  def slots(self):
    """Numbers of the slots of a part, to be written as (groups, E C)."""
    shape = self._grid[0] * _GROUPS, self._num_slots
    array = jax.ShapeDtypeStruct(shape, jnp.float32)
    spec = pl.BlockSpec((_GROUPS, self._num_slots), lambda i, j: (i, 0))
    return _Block(array, spec, array.size * 4)

  def tokens(self, part, x=None):
    """The tokens of a part, which is read or written in place."""
    first, shape = part * self._grid[0], self._tokens
    block = _GROUPS, shape.shape[1], self._block
    spec = pl.BlockSpec(block, lambda i, j: (first + i, 0, j))
    size = shape.size * shape.dtype.itemsize // self._parts
    return _Block(shape if x is None else x, spec, size)

  def rows(self, rows=None):
    """All rows of a part."""
    shape = self._rows
    block = shape.shape[0], _GROUPS * self._capacity, self._block
    spec = pl.BlockSpec(block, lambda i, j: (0, i, j))
    size = shape.size * shape.dtype.itemsize
    return _Block(shape if rows is None else rows, spec, size)

  def call(self, kernel, inputs, outputs, into=()):
    """Runs a kernel.

    Args:
      kernel: takes references to the blocks of inputs and outputs, and to
        float32 memory for the rows of a program, in the order E C 8.
      inputs: what it reads.
      outputs: what it writes.
      into: the arrays whose other blocks the first outputs keep. Without one,
        the blocks that no program writes are undefined.
    """
    blocks = [*inputs, *outputs]
    cost = pl.CostEstimate(
      flops=self._flops * (2 if kernel is _gradient_kernel else 1),
      transcendentals=0,
      bytes_accessed=sum(block.bytes for block in blocks),
    )
    arrays, in_specs, _ = map(list, zip(*inputs, strict=True))
    count = len(inputs)
    arrays += into
    in_specs += [pl.BlockSpec(memory_space=pl.ANY) for _ in into]

    def without_into(*refs):
      kernel(*refs[:count], *refs[count + len(into) :])

    program = pl.pallas_call(
      without_into,
      grid=self._grid,
      in_specs=in_specs,
      out_specs=[block.spec for block in outputs],
      out_shape=[block.array for block in outputs],
      scratch_shapes=[self._scratch],
      input_output_aliases={count + i: i for i in range(len(into))},
      cost_estimate=cost,
      interpret=self._interpret,
    )
    return program(*arrays)


def _dispatch_kernel(tokens_ref, x_ref, out_ref, rows_ref):
  for group in range(_GROUPS):
    x = x_ref[group]
    Dispatch = _is_in_slot(tokens_ref, group, len(x)).astype(x.dtype)
    _write_group(rows_ref, group, _dot(Dispatch, x, 0, 0))
  _store(rows_ref, out_ref)


def _combine_kernel(tokens_ref, weights_ref, in_ref, x_ref, rows_ref):
  _load(in_ref, rows_ref)
  for group in range(_GROUPS):
    Dispatch = _is_in_slot(tokens_ref, group, x_ref.shape[1])
    Combine = jnp.where(Dispatch, weights_ref[group : group + 1], 0.0)
    rows = _read_group(rows_ref, group).astype(x_ref.dtype)
    x = _dot(Combine.astype(x_ref.dtype), rows, 1, 0)
    x_ref[group] = x.astype(x_ref.dtype)


def _gradient_kernel(
  tokens_ref, weights_ref, d_x_ref, in_ref, d_weights_ref, out_ref, rows_ref
):
  _load(in_ref, rows_ref)

  @pl.when(pl.program_id(1) == 0)
  def _():
    d_weights_ref[...] = jnp.zeros_like(d_weights_ref)

  for group in range(_GROUPS):
    d_x = d_x_ref[group]
    Dispatch = _is_in_slot(tokens_ref, group, len(d_x))
    Combine = jnp.where(Dispatch, weights_ref[group : group + 1], 0.0)
    rows = _read_group(rows_ref, group).astype(d_x.dtype)
    d_Combine = jnp.where(Dispatch, _dot(d_x, rows, 1, 1), 0.0)
    d_weights_ref[group : group + 1] += d_Combine.sum(axis=0, keepdims=True)
    d_rows = _dot(Combine.astype(d_x.dtype), d_x, 0, 0)
    _write_group(rows_ref, group, d_rows)
  _store(rows_ref, out_ref)


def _is_in_slot(tokens_ref, group, num_tokens):
  """The Dispatch tensor of a group as booleans, (S, E C)."""
  shape = num_tokens, tokens_ref.shape[1]
  token = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  return token == tokens_ref[group : group + 1]


# The memory for rows is split into registers of 128 features, (features / 128,
# E C 8, 128): only so can every eighth row be read or written.


def _of_group(rows_ref, group):
  return pl.ds(group, rows_ref.shape[1] // _GROUPS, stride=_GROUPS)


def _read_group(rows_ref, group):
  """The rows of a group, (E C, features)."""
  rows = _of_group(rows_ref, group)
  registers = [rows_ref.at[i][rows] for i in range(len(rows_ref))]
  return jnp.concatenate(registers, axis=1)


def _write_group(rows_ref, group, x):
  for i in range(len(rows_ref)):
    lanes = slice(i * _LANES, (i + 1) * _LANES)
    rows_ref.at[i][_of_group(rows_ref, group)] = x[:, lanes]


def _load(ref, rows_ref):
  """Reads all rows of a program."""
  for i in range(len(rows_ref)):
    lanes = slice(i * _LANES, (i + 1) * _LANES)
    rows_ref[i] = ref[:, :, lanes].astype(jnp.float32).reshape(-1, _LANES)


def _store(rows_ref, ref):
  """Writes all rows of a program."""
  for i in range(len(rows_ref)):
    lanes = slice(i * _LANES, (i + 1) * _LANES)
    rows = rows_ref[i].reshape(*ref.shape[:2], _LANES)
    ref[:, :, lanes] = rows.astype(ref.dtype)


def _dot(x, y, x_axis, y_axis):
  """The product over an axis of each, summed in float32."""
  exact = x.dtype == jnp.float32
  return jax.lax.dot_general(
    x,
    y,
    (((x_axis,), (y_axis,)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if exact else None,
    preferred_element_type=jnp.float32,
  )
