"""Routing plans: how tokens travel to expert slots and back.

Axis legend, the same letters everywhere in this project:

  B  images in a batch              E  experts
  L  tokens of one image            C  slots per expert per group (capacity)
  G  groups, routed independently   K  experts chosen per token (token choice)
  S  tokens in one group            D  width        F  expert hidden size

A mixture-of-experts layer is two tensors and E experts:

  inputs[e,g,c,:]  = sum_s  Dispatch[g,s,e,c] * x[g,s,:]
  outputs[e,g,c,:] = expert_e(inputs[e,g,c,:])
  y[g,s,:]         = sum_ec Combine[g,s,e,c] * outputs[e,g,c,:]

A `RoutingPlan` holds these tensors in one of two forms. `DensePlan` stores them
as they are and multiplies: cost O(S*E*C*D). `IndexPlan` stores, for each slot,
which token sits in it: it moves rows, at cost O(E*C*D), and can hold only
plans whose Dispatch is 0/1 with at most one token per slot.
"""

import abc
import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int


class RoutingPlan(abc.ABC):
  """Carries tokens to expert slots (`dispatch`) and back (`combine`)."""

  @abc.abstractmethod
  def dispatch(self, x: Float[ArrayLike, "G S D"]) -> Float[Array, "E G C D"]:
    """Expert inputs, in the dtype of `x`; empty slots are zero.

    Raises:
      ValueError: for tokens of another G or S than the plan's.
    """

  @abc.abstractmethod
  def combine(self, y: Float[ArrayLike, "E G C D"]) -> Float[Array, "G S D"]:
    """Weighted expert outputs per token, in the dtype of `y`.

    Raises:
      ValueError: for outputs of another E, G or C than the plan's.
    """

  @abc.abstractmethod
  def dispatch_tensor(self) -> Float[Array, "G S E C"]:
    """The Dispatch tensor, float32."""

  @abc.abstractmethod
  def combine_tensor(self) -> Float[Array, "G S E C"]:
    """The Combine tensor, float32."""

  @abc.abstractmethod
  def tokens_per_expert(self) -> Float[Array, "G E"]:
    """Dispatch summed over tokens and slots."""

  @abc.abstractmethod
  def experts_per_token(self) -> Float[Array, "G S"]:
    """Dispatch summed over experts and slots."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DensePlan(RoutingPlan):
  """Both routing tensors, stored. The only form of a soft plan."""

  dispatch_weights: Float[Array, "G S E C"]
  combine_weights: Float[Array, "G S E C"]

  def dispatch(self, x: Float[ArrayLike, "G S D"]) -> Float[Array, "E G C D"]:
    x = _check_leading_axes("x", x, self.dispatch_weights.shape[:2])
    weights = self.dispatch_weights.astype(x.dtype)
    return jnp.einsum("GSEC,GSD->EGCD", weights, x)

  def combine(self, y: Float[ArrayLike, "E G C D"]) -> Float[Array, "G S D"]:
    num_groups, _, num_experts, capacity = self.combine_weights.shape
    y = _check_leading_axes("y", y, (num_experts, num_groups, capacity))
    weights = self.combine_weights.astype(y.dtype)
    return jnp.einsum("GSEC,EGCD->GSD", weights, y)

  def dispatch_tensor(self) -> Float[Array, "G S E C"]:
    return self.dispatch_weights

  def combine_tensor(self) -> Float[Array, "G S E C"]:
    return self.combine_weights

  def tokens_per_expert(self) -> Float[Array, "G E"]:
    return self.dispatch_weights.sum(axis=(1, 3))

  def experts_per_token(self) -> Float[Array, "G S"]:
    return self.dispatch_weights.sum(axis=(2, 3))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IndexPlan(RoutingPlan):
  """The token in each slot, and how much of the slot's output it gets back.

  Differentiable in reverse mode only (`jax.custom_vjp`); the dense form, see
  `to_dense`, in forward mode too.

  Attributes:
    tokens: index in [0, S) of the token in each slot; S marks an empty slot.
    weights: combine weight of each slot, float32; 0 for an empty slot.
    num_tokens: S.
    slots: the inverse map, known under token choice: the slots e*C + c that
      hold each token; E*C marks a choice that was dropped. With it, every
      pass in both directions is a gather; without it, carrying outputs back
      to tokens is a scatter-add.
  """

  tokens: Int[Array, "G E C"]
  weights: Float[Array, "G E C"]
  num_tokens: int = dataclasses.field(metadata={"static": True})
  slots: Int[Array, "G S K"] | None = None

  def dispatch(self, x: Float[ArrayLike, "G S D"]) -> Float[Array, "E G C D"]:
    x = _check_leading_axes("x", x, (len(self.tokens), self.num_tokens))
    return _to_slots(x, self.tokens, self.slots, self.num_tokens)

  def combine(self, y: Float[ArrayLike, "E G C D"]) -> Float[Array, "G S D"]:
    num_groups, num_experts, capacity = self.tokens.shape
    y = _check_leading_axes("y", y, (num_experts, num_groups, capacity))
    weights = jnp.moveaxis(self.weights, 0, 1).astype(y.dtype)
    weighted = y * weights[..., None]
    return _to_tokens(weighted, self.tokens, self.slots, self.num_tokens)

  def dispatch_tensor(self) -> Float[Array, "G S E C"]:
    one_hot = jax.nn.one_hot(self.tokens, self.num_tokens, dtype=jnp.float32)
    return jnp.moveaxis(one_hot, -1, 1)

  def combine_tensor(self) -> Float[Array, "G S E C"]:
    return self.dispatch_tensor() * self.weights[:, None]

  def tokens_per_expert(self) -> Float[Array, "G E"]:
    return jnp.sum(self.tokens < self.num_tokens, axis=2, dtype=jnp.float32)

  def experts_per_token(self) -> Float[Array, "G S"]:
    num_groups, num_experts, capacity = self.tokens.shape
    if self.slots is not None:
      held = self.slots < num_experts * capacity
      return jnp.sum(held, axis=2, dtype=jnp.float32)
    ones = jnp.ones((num_experts, num_groups, capacity, 1), jnp.float32)
    return _to_tokens(ones, self.tokens, None, self.num_tokens)[..., 0]

  def to_dense(self) -> DensePlan:
    return DensePlan(self.dispatch_tensor(), self.combine_tensor())


def _check_leading_axes(name: str, values: ArrayLike, leading: tuple[int, ...]) -> Array:
  """An array of any width that has the plan's leading axes."""
  array = jnp.asarray(values)
  if array.shape[:-1] != leading:
    wanted = ", ".join(map(str, leading))
    raise ValueError(
      f"{name} of shape {array.shape}: the plan was made for ({wanted}, D). "
      "Use it with the tokens that it was made of and the outputs of its slots."
    )
  return array


_DENSE_ON_TPU_UP_TO = 2048  # Slots per group.


def best_plan_form(platform: str, num_slots: int) -> Literal["index", "dense"]:
  """The cheaper form, "index" or "dense", of a sparse plan.

  Both move every token once each way. The index form gathers and scatters rows;
  the dense form multiplies, by E*C numbers per token and width, which matrix
  units do for nothing while the layer waits for memory. On CPUs, measured, the
  index form is always faster (`bench layer`). On TPUs it depends on E*C.
  Compiled for one v5e chip, forward and backward of one layer (softmax expert
  choice, 12,544 tokens, D=768, F=3072, E=32, bfloat16), index against dense:

    E*C   TFLOP          GB of HBM      ms, bound by the slower
    196   0.353  0.371   2.82  2.28     3.44  2.78
    392   0.353  0.390   2.81  2.24     3.43  2.74
    784   0.353  0.427   2.59  2.30     3.16  2.81
    1568  0.360  0.511   2.83  2.38     3.45  2.91
    3136  0.718  1.020   3.52  3.10     4.30  5.18

  Args:
    platform: as JAX names it, "cpu", "gpu" or "tpu".
    num_slots: E*C, slots per group.
  """
  dense = platform == "tpu" and num_slots <= _DENSE_ON_TPU_UP_TO
  return "dense" if dense else "index"


# `_to_slots` copies each token's row into the slots that hold it, `_to_tokens`
# adds up the rows of each token's slots: two linear maps, each the transpose
# of the other, so that the backward pass of one is the other.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _to_slots(x, tokens, slots, num_tokens):
  """(G, S, D) -> (E, G, C, D), a gather."""
  del slots
  rows = jnp.moveaxis(_token_rows(tokens, num_tokens), 0, 1)
  flat = x.reshape(-1, x.shape[-1])
  return flat.at[rows].get(mode="fill", fill_value=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _to_tokens(y, tokens, slots, num_tokens):
  """(E, G, C, D) -> (G, S, D), a gather if `slots` is known, or a scatter.

  Sums are in float32, whatever the dtype of `y`. Against this scatter, a sum
  over slots sorted by token took 2.0 times as long, the dense form's einsum 37
  times (8.4 and 143 against 3.9 ms; 1,568 tokens in one group, D=384, 32
  experts, two CPU cores busy with other work; medians of 25 paired ratios).
  """
  num_groups, width = y.shape[1], y.shape[-1]
  flat = y.reshape(-1, width)
  if slots is not None:
    rows = _slot_rows(slots, *y.shape[:3])
    return flat.at[rows].get(mode="fill", fill_value=0).sum(axis=2)
  rows = jnp.moveaxis(_token_rows(tokens, num_tokens), 0, 1).reshape(-1)
  summed = jnp.zeros((num_groups * num_tokens, width), jnp.float32)
  summed = summed.at[rows].add(flat.astype(jnp.float32), mode="drop")
  return summed.reshape(num_groups, num_tokens, width).astype(y.dtype)


def _token_rows(tokens, num_tokens):
  """Row of each slot's token in (G * S, D); out of bounds for an empty slot."""
  num_groups = tokens.shape[0]
  offsets = num_tokens * jnp.arange(num_groups, dtype=tokens.dtype)
  rows = tokens + offsets[:, None, None]
  return jnp.where(tokens < num_tokens, rows, num_groups * num_tokens)


def _slot_rows(slots, num_experts, num_groups, capacity):
  """Row of each choice's slot in (E * G * C, D); out of bounds if dropped."""
  expert, slot = jnp.divmod(slots, capacity)
  group = jnp.arange(num_groups, dtype=slots.dtype)[:, None, None]
  rows = (expert * num_groups + group) * capacity + slot
  kept = slots < num_experts * capacity
  return jnp.where(kept, rows, num_experts * num_groups * capacity)


def _to_slots_forward(x, tokens, slots, num_tokens):
  return _to_slots(x, tokens, slots, num_tokens), (tokens, slots)


def _to_slots_backward(num_tokens, residuals, inputs_bar):
  return _to_tokens(inputs_bar, *residuals, num_tokens), None, None


def _to_tokens_forward(y, tokens, slots, num_tokens):
  return _to_tokens(y, tokens, slots, num_tokens), (tokens, slots)


def _to_tokens_backward(num_tokens, residuals, outputs_bar):
  return _to_slots(outputs_bar, *residuals, num_tokens), None, None


_to_slots.defvjp(_to_slots_forward, _to_slots_backward)
_to_tokens.defvjp(_to_tokens_forward, _to_tokens_backward)
