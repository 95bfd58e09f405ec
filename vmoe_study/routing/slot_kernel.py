"""Dispatch and combine as TPU kernels: routing tensors never leave the chip.

A kernel makes the 0/1 tensor of a group, (S, E C), from the tokens in its
slots, and multiplies by it, as `DensePlan` does. Slots are rows of experts in
the order in which they are sent, so that nothing is transposed, sliced or
padded in memory. Tokens are read, or written, once for all parts of an
exchange. In return, the first part leaves only when all are dispatched, and
tokens are combined only when the last part is back.

A program works on 8 groups, one for each sublane of a vector register, and a
range of features. In rows of an expert, blocks of 8 groups have the order C 8.

With x the tokens, y the rows of slots, and ' for gradients:

  dispatch   y = Dispatch^T x      x' = Dispatch y'
  combine    x = Combine y         y' = Combine^T x'
             weights'[e,c] = sum_s Dispatch[s,e,c] * (x' y^T)[s,e,c]
"""

import functools

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
) -> list[Float[Array, "part N D"]]:
  """Rows of all slots. Differentiable in reverse mode only.

  Args:
    x: tokens of any float dtype.
    tokens: as in an `IndexPlan`.
    num_tokens: S.
    parts: number of parts into which experts are split: `RoutingPlan.part`.
    interpret: whether to emulate the kernel without a TPU, for tests.

  Returns:
    N = G * C rows for the experts of each part; zero for an empty slot.
  """
  sizes = _Sizes(tokens, num_tokens, parts, x)
  index = [sizes.by_part(tokens)]
  return sizes.call(_dispatch_kernel, index, [x], sizes.rows, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def combine(
  rows: list[Float[Array, "part N D"]],
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
  sizes = _Sizes(tokens, num_tokens, len(rows), rows[0])
  plan = [sizes.by_part(tokens), sizes.by_part(weights)]
  (x,) = sizes.call(_combine_kernel, plan, rows, [sizes.tokens], interpret)
  return x


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
  sizes = _Sizes(tokens, num_tokens, len(rows), d_x)
  plan = [sizes.by_part(tokens), sizes.by_part(weights)]
  outputs = [sizes.slots, *sizes.rows]
  d_weights, *d_rows = sizes.call(
    _gradient_kernel, plan, [d_x, *rows], outputs, interpret
  )
  return d_rows, None, sizes.by_expert(d_weights)


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


class _Sizes:
  """Sizes of a kernel: its programs, and the blocks that they work on.

  `tokens`, `rows` and `slots` are arrays of a kernel, with their blocks; slots
  are (G, E C).
  """

  def __init__(self, tokens_GEC, num_tokens, parts, x):
    num_groups, num_experts, capacity = self._shape = tokens_GEC.shape
    num_slots, width = num_experts * capacity, x.shape[-1]
    sizes = num_tokens, num_slots, width, x.dtype.itemsize
    block, local = _block_width(*sizes), num_experts // parts
    self._parts = parts
    self._grid = num_groups // _GROUPS, width // block
    self._flops = 2 * num_groups * num_tokens * num_slots * width
    scratch = block // _LANES, num_slots * _GROUPS, _LANES
    self._scratch = pltpu.VMEM(scratch, jnp.float32)
    self.tokens = (
      jax.ShapeDtypeStruct((num_groups, num_tokens, width), x.dtype),
      pl.BlockSpec((_GROUPS, num_tokens, block), lambda i, j: (i, 0, j)),
    )
    rows = (
      jax.ShapeDtypeStruct((local, num_groups * capacity, width), x.dtype),
      pl.BlockSpec((local, _GROUPS * capacity, block), lambda i, j: (0, i, j)),
    )
    self.rows = [rows] * parts
    self.slots = (
      jax.ShapeDtypeStruct((num_groups, num_slots), jnp.float32),
      pl.BlockSpec((_GROUPS, num_slots), lambda i, j: (i, 0)),
    )

  def by_part(self, x_GEC):
    """(G, E C), the experts of a part next to each other."""
    num_groups, _, capacity = self._shape
    split = x_GEC.reshape(num_groups, -1, self._parts, capacity)
    return split.swapaxes(1, 2).reshape(num_groups, -1)

  def by_expert(self, x_GN):
    """(G, E, C), the inverse of `by_part`."""
    num_groups, _, capacity = self._shape
    split = x_GN.reshape(num_groups, self._parts, -1, capacity)
    return split.swapaxes(1, 2).reshape(self._shape)

  def call(self, kernel, plan, arrays, outputs, interpret):
    """Runs a kernel.

    Args:
      kernel: takes references to the blocks of `plan`, `arrays` and outputs,
        and to float32 memory for the rows of a program, in the order E C 8.
      plan: arrays (G, E C).
      arrays: tokens and rows.
      outputs: as in `tokens`, `rows` and `slots`.
      interpret: computes without a TPU.
    """
    known = [self.tokens, *self.rows]
    specs = {array.shape: spec for array, spec in known}
    shapes, out_specs = zip(*outputs, strict=True)
    moved = [*plan, *arrays, *shapes]
    cost = pl.CostEstimate(
      flops=self._flops * (2 if kernel is _gradient_kernel else 1),
      transcendentals=0,
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in moved),
    )
    program = pl.pallas_call(
      kernel,
      grid=self._grid,
      in_specs=[self.slots[1]] * len(plan) + [specs[x.shape] for x in arrays],
      out_specs=out_specs,
      out_shape=shapes,
      scratch_shapes=[self._scratch],
      cost_estimate=cost,
      interpret=interpret,
    )
    return list(program(*plan, *arrays))


def _dispatch_kernel(tokens_ref, x_ref, *refs):
  *parts, rows_ref = refs
  for group in range(_GROUPS):
    x = x_ref[group]
    Dispatch = _is_in_slot(tokens_ref, group, len(x)).astype(x.dtype)
    _write_group(rows_ref, group, _dot(Dispatch, x, 0, 0))
  _store(rows_ref, parts)


def _combine_kernel(tokens_ref, weights_ref, *refs):
  *parts, x_ref, rows_ref = refs
  _load(parts, rows_ref)
  for group in range(_GROUPS):
    Dispatch = _is_in_slot(tokens_ref, group, x_ref.shape[1])
    Combine = jnp.where(Dispatch, weights_ref[group : group + 1], 0.0)
    rows = _read_group(rows_ref, group).astype(x_ref.dtype)
    x = _dot(Combine.astype(x_ref.dtype), rows, 1, 0)
    x_ref[group] = x.astype(x_ref.dtype)


def _gradient_kernel(tokens_ref, weights_ref, d_x_ref, *refs):
  *refs, rows_ref = refs
  count = len(refs) // 2
  parts, d_weights_ref, d_parts = refs[:count], refs[count], refs[count + 1 :]
  _load(parts, rows_ref)

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
  _store(rows_ref, d_parts)


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


def _load(parts, rows_ref):
  """Reads the rows of all parts."""
  for part, rows, i, lanes in _blocks(parts, rows_ref):
    x = part[:, :, lanes].astype(jnp.float32)
    rows_ref.at[i][rows] = x.reshape(-1, _LANES)


def _store(rows_ref, parts):
  """Writes the rows of all parts."""
  for part, rows, i, lanes in _blocks(parts, rows_ref):
    x = rows_ref.at[i][rows].reshape(*part.shape[:2], _LANES)
    part[:, :, lanes] = x.astype(part.dtype)


def _blocks(parts, rows_ref):
  """Each part with its rows, and each register with its lanes of the part."""
  size = rows_ref.shape[1] // len(parts)
  for p, part in enumerate(parts):
    for i in range(len(rows_ref)):
      lanes = slice(i * _LANES, (i + 1) * _LANES)
      yield part, pl.ds(p * size, size), i, lanes


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
