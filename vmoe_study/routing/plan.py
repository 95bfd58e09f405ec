"""Routing plans: carry tokens to expert slots and expert outputs back.

Axis legend, the same letters everywhere in this project:

  B  images in a batch              E  experts
  L  tokens of one image            C  slots per expert per group (capacity)
  G  groups, routed independently   K  experts chosen per token (token choice)
  S  tokens in one group            D  width        F  expert hidden size

A mixture-of-experts (MoE) layer consists of two tensors and E experts:

  inputs[e,g,c,:]  = sum_s  Dispatch[g,s,e,c] * x[g,s,:]
  outputs[e,g,c,:] = expert_e(inputs[e,g,c,:])
  y[g,s,:]         = sum_ec Combine[g,s,e,c] * outputs[e,g,c,:]

A `RoutingPlan` holds these tensors in one of two forms. `DensePlan` stores the
tensors and multiplies by them, at cost O(S*E*C*D). `IndexPlan` stores the index
of the token in each slot and copies rows, at cost O(E*C*D); it requires a 0/1
Dispatch with at most one token per slot.
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
  """Carries tokens to expert slots (`dispatch`) and back (`combine`).

  A plan is a pytree of arrays, so that functions transformed by JAX may take
  and return it.

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study import RoutingPlan
    >>> from vmoe_study.routing.choice import expert_choice
    >>> scores = jnp.arange(12.0).reshape(1, 6, 2)  # (G, S, E)
    >>> plan = expert_choice(scores, scores, capacity=3)
    >>> isinstance(plan, RoutingPlan)
    True
    >>> inputs = plan.dispatch(jnp.ones((1, 6, 4)))  # (G, S, D)
    >>> inputs.shape
    (2, 1, 3, 4)
    >>> plan.combine(inputs).shape
    (1, 6, 4)
    >>> plan.dispatch_tensor().shape
    (1, 6, 2, 3)
  """

  @property
  @abc.abstractmethod
  def num_groups(self) -> int:
    """G."""

  @property
  @abc.abstractmethod
  def num_experts(self) -> int:
    """E."""

  def part(self, index: int, count: int) -> "RoutingPlan":
    """The plan of one of `count` equal parts of the groups, in order.

    Args:
      index: from 0 to `count` - 1.
      count: number of parts into which the groups are split; divides G.
    """
    size = self.num_groups // count
    return jax.tree.map(lambda x: x[index * size : (index + 1) * size], self)

  @abc.abstractmethod
  def dispatch(self, x: Float[ArrayLike, "G S D"]) -> Float[Array, "E G C D"]:
    """Expert inputs, in the dtype of `x`; empty slots are zero.

    Raises:
      ValueError: if G or S differ from the plan's.
    """

  @abc.abstractmethod
  def combine(self, y: Float[ArrayLike, "E G C D"]) -> Float[Array, "G S D"]:
    """Weighted expert outputs per token, in the dtype of `y`.

    Raises:
      ValueError: if E, G or C differ from the plan's.
    """

  @abc.abstractmethod
  def dispatch_tensor(self) -> Float[Array, "G S E C"]:
    """The Dispatch tensor, float32."""

  @abc.abstractmethod
  def combine_tensor(self) -> Float[Array, "G S E C"]:
    """The Combine tensor, float32."""

  @abc.abstractmethod
  def tokens_per_expert(self) -> Float[Array, "G E"]:
    """Dispatch summed over tokens and slots, float32."""

  @abc.abstractmethod
  def experts_per_token(self) -> Float[Array, "G S"]:
    """Dispatch summed over experts and slots, float32."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DensePlan(RoutingPlan):
  """A plan that stores both routing tensors; the only form for Soft MoE.

  Attributes:
    dispatch_weights: the Dispatch tensor, float32.
    combine_weights: the Combine tensor, float32.

  Example:
    Each of two slots is the mean of four tokens, each token the mean of both.

    >>> import jax.numpy as jnp
    >>> from vmoe_study import DensePlan
    >>> plan = DensePlan(
    ...   dispatch_weights=jnp.full((1, 4, 2, 1), 0.25),
    ...   combine_weights=jnp.full((1, 4, 2, 1), 0.5),
    ... )
    >>> x = jnp.arange(4.0).reshape(1, 4, 1)  # (G, S, D)
    >>> plan.dispatch(x)[:, 0, 0].tolist()
    [[1.5], [1.5]]
    >>> plan.combine(plan.dispatch(x))[0].tolist()
    [[1.5], [1.5], [1.5], [1.5]]
  """

  dispatch_weights: Float[Array, "G S E C"]
  combine_weights: Float[Array, "G S E C"]

  @property
  def num_groups(self) -> int:
    return self.combine_weights.shape[0]

  @property
  def num_experts(self) -> int:
    return self.combine_weights.shape[2]

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
  """A plan that stores the token in each slot and the slot's combine weight.

  Differentiable in reverse mode only (`jax.custom_vjp`); `to_dense` gives a
  form that is differentiable in forward mode too.

  Attributes:
    tokens: index in [0, S) of the token in each slot; S marks an empty slot.
    weights: combine weight of each slot, float32; 0 for an empty slot.
    num_tokens: S.
    slots: the inverse map, known under token choice: the slots e * C + c of
      each token; E * C marks a dropped choice. With it, all passes forward and
      backward are gathers; without it, carrying outputs back to tokens is a
      scatter-add.
    multiplies: whether `dispatch` and `combine` multiply by the routing tensors
      instead of copying rows: the dense form, made when it is used.

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study import IndexPlan
    >>> plan = IndexPlan(
    ...   tokens=jnp.array([[[0, 2], [1, 3]]]),  # 3 = S: an empty slot.
    ...   weights=jnp.array([[[1.0, 0.5], [1.0, 0.0]]]),
    ...   num_tokens=3,
    ... )
    >>> plan.tokens_per_expert().tolist()
    [[2.0, 1.0]]
    >>> x = jnp.array([[[1.0], [2.0], [3.0]]])  # (G, S, D)
    >>> plan.dispatch(x).shape
    (2, 1, 2, 1)
    >>> plan.combine(plan.dispatch(x)).tolist()
    [[[1.0], [2.0], [1.5]]]
  """

  tokens: Int[Array, "G E C"]
  weights: Float[Array, "G E C"]
  num_tokens: int = dataclasses.field(metadata={"static": True})
  slots: Int[Array, "G S K"] | None = None
  multiplies: bool = dataclasses.field(default=False, metadata={"static": True})

  @property
  def num_groups(self) -> int:
    return self.tokens.shape[0]

  @property
  def num_experts(self) -> int:
    return self.tokens.shape[1]

  def dispatch(self, x: Float[ArrayLike, "G S D"]) -> Float[Array, "E G C D"]:
    if self.multiplies:
      return self.to_dense().dispatch(x)
    x = _check_leading_axes("x", x, (self.num_groups, self.num_tokens))
    slots_ECGD = _to_slots(x, self.tokens, self.slots, self.num_tokens)
    return jnp.moveaxis(slots_ECGD, 1, 2)

  def combine(self, y: Float[ArrayLike, "E G C D"]) -> Float[Array, "G S D"]:
    if self.multiplies:
      return self.to_dense().combine(y)
    num_groups, num_experts, capacity = self.tokens.shape
    y = _check_leading_axes("y", y, (num_experts, num_groups, capacity))
    weights = jnp.moveaxis(self.weights, 0, 2).astype(y.dtype)
    weighted = jnp.moveaxis(y, 1, 2) * weights[..., None]
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
    ones = jnp.ones((num_experts, capacity, num_groups, 1), jnp.float32)
    return _to_tokens(ones, self.tokens, None, self.num_tokens)[..., 0]

  def to_dense(self) -> DensePlan:
    """The same plan as two tensors."""
    return DensePlan(self.dispatch_tensor(), self.combine_tensor())


def _check_leading_axes(
  name: str, values: ArrayLike, leading: tuple[int, ...]
) -> Array:
  """Returns the array; raises ValueError if its leading axes differ."""
  array = jnp.asarray(values)
  if array.shape[:-1] != leading:
    axes = ", ".join(map(str, leading))
    raise ValueError(
      f"{name}.shape={array.shape}: must be ({axes}, D), the shape of the "
      "plan. Pass the tokens that were routed, or the outputs of their slots."
    )
  return array


_DENSE_ON_TPU_UP_TO = 2048  # Slots per group.


def best_plan_form(platform: str, num_slots: int) -> Literal["index", "dense"]:
  """The form in which a sparse plan is expected to be faster.

  The index form gathers and scatters rows. The dense form multiplies by E*C
  numbers per token, which costs a TPU no time as long as the layer is bound by
  memory bandwidth. On CPUs the index form was faster in all measurements of
  `bench layer`. On TPUs it depends on E*C: compiled for one v5e chip, forward
  and backward pass of one layer (softmax expert choice, 12,544 tokens, D=768,
  F=3072, E=32, bfloat16), index form left, dense form right:

    E*C   TFLOP          GB of HBM      ms, by the slower of the two
    196   0.353  0.371   2.82  2.28     3.44  2.78
    392   0.353  0.390   2.81  2.24     3.43  2.74
    784   0.353  0.427   2.59  2.30     3.16  2.81
    1568  0.360  0.511   2.83  2.38     3.45  2.91
    3136  0.718  1.020   3.52  3.10     4.30  5.18

  With an exchange among 16 of these chips (50,432 tokens on each, E*C = 192)
  the HBM traffic is 8.34 GB (index form) and 4.86 GB (dense form). In both
  measurements slots were in the order E G C. Where `routing.slot_kernel`
  supports the shapes, an exchange on TPUs uses its kernels instead of either
  form: `performance.layer_traffic` counts their bytes.

  Args:
    platform: JAX's name of the backend: "cpu", "gpu" or "tpu".
    num_slots: E*C, slots per group.
  """
  dense = platform == "tpu" and num_slots <= _DENSE_ON_TPU_UP_TO
  return "dense" if dense else "index"


# `_to_slots` copies the row of each token into its slots; `_to_tokens` sums the
# rows of each token's slots. The two linear maps are transposes of each other,
# so each is the backward pass of the other. Slots are in the order E C G, in
# which `routing.exchange` sends them.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _to_slots(x_GSD, tokens_GEC, slots_GSK, num_tokens):
  """(G, S, D) -> (E, C, G, D), a gather."""
  del slots_GSK
  rows_ECG = jnp.moveaxis(_token_rows(tokens_GEC, num_tokens), 0, 2)
  flat = x_GSD.reshape(-1, x_GSD.shape[-1])
  return flat.at[rows_ECG].get(mode="fill", fill_value=0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _to_tokens(y_ECGD, tokens_GEC, slots_GSK, num_tokens):
  """(E, C, G, D) -> (G, S, D), a gather if slots are known, else a scatter.

  Sums are in float32, whatever the dtype of `y_ECGD`. Compared with the
  scatter, a sum over slots sorted by token took 2.0 times as long, the einsum
  of the dense form 37 times (8.4 and 143 against 3.9 ms; 1,568 tokens in one
  group, D=384, 32 experts, two CPU cores busy with other work; medians of 25
  paired ratios).
  """
  num_groups, width = y_ECGD.shape[2:]
  flat = y_ECGD.reshape(-1, width)
  if slots_GSK is not None:
    rows_GSK = _slot_rows(slots_GSK, *y_ECGD.shape[:3])
    return flat.at[rows_GSK].get(mode="fill", fill_value=0).sum(axis=2)
  rows = jnp.moveaxis(_token_rows(tokens_GEC, num_tokens), 0, 2).reshape(-1)
  summed = jnp.zeros((num_groups * num_tokens, width), jnp.float32)
  summed = summed.at[rows].add(flat.astype(jnp.float32), mode="drop")
  return summed.reshape(num_groups, num_tokens, width).astype(y_ECGD.dtype)


def _token_rows(tokens_GEC, num_tokens):
  """Row in (G * S, D) of each slot's token; out of bounds for an empty slot."""
  num_groups = tokens_GEC.shape[0]
  offset_G = num_tokens * jnp.arange(num_groups, dtype=tokens_GEC.dtype)
  rows_GEC = tokens_GEC + offset_G[:, None, None]
  return jnp.where(tokens_GEC < num_tokens, rows_GEC, num_groups * num_tokens)


def _slot_rows(slots_GSK, num_experts, capacity, num_groups):
  """Row in (E * C * G, D) of each choice's slot; out of bounds if dropped."""
  group_G11 = jnp.arange(num_groups, dtype=slots_GSK.dtype)[:, None, None]
  rows_GSK = slots_GSK * num_groups + group_G11
  kept_GSK = slots_GSK < num_experts * capacity
  return jnp.where(kept_GSK, rows_GSK, num_experts * num_groups * capacity)


def _to_slots_forward(x_GSD, tokens_GEC, slots_GSK, num_tokens):
  inputs_ECGD = _to_slots(x_GSD, tokens_GEC, slots_GSK, num_tokens)
  return inputs_ECGD, (tokens_GEC, slots_GSK)


def _to_slots_backward(num_tokens, residuals, cotangent_ECGD):
  return _to_tokens(cotangent_ECGD, *residuals, num_tokens), None, None


def _to_tokens_forward(y_ECGD, tokens_GEC, slots_GSK, num_tokens):
  outputs_GSD = _to_tokens(y_ECGD, tokens_GEC, slots_GSK, num_tokens)
  return outputs_GSD, (tokens_GEC, slots_GSK)


def _to_tokens_backward(num_tokens, residuals, cotangent_GSD):
  return _to_slots(cotangent_GSD, *residuals, num_tokens), None, None


_to_slots.defvjp(_to_slots_forward, _to_slots_backward)
_to_tokens.defvjp(_to_tokens_forward, _to_tokens_backward)
