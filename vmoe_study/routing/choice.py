"""Choices: from scores and weights to a routing plan.

Scores decide which token goes to which expert, weights how much of the expert's
output returns to the token. Either tokens choose experts (`token_choice`) or
experts choose tokens (`expert_choice`). Scores only rank: no gradient flows
through them. Ties go to the lower index.

Names of local arrays end in their axes; N = K * S counts the choices of a
group, choice k of token s being number k * S + s.
"""

import dataclasses
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from vmoe_study.routing.arguments import as_float32, check_positive
from vmoe_study.routing.guarantees import Guarantees
from vmoe_study.routing.plan import IndexPlan

_SMALLEST_TOTAL = 1e-9  # Of a token's weights that are divided by their sum.


def token_choice(
  scores: Float[ArrayLike, "G S E"],
  weights: Float[ArrayLike, "G S E"],
  *,
  num_selected_experts: int,
  capacity: int,
  batch_priority: bool = False,
  fill_zero_scores: bool = True,
  renormalize: bool = False,
) -> IndexPlan:
  """Each token chooses the K experts with its highest scores.

  An expert serves all first choices before all second choices, and so on.
  Choices of the same rank are served in the order of the tokens or, with
  `batch_priority`, by decreasing highest score of the token (arXiv:2106.05974,
  Section 4). A choice whose expert is full is dropped.

  Args:
    scores: rank the experts of each token; any real dtype.
    weights: scale what returns from each expert; any real dtype.
    num_selected_experts: K, from 1 to E.
    capacity: C, slots per expert.
    batch_priority: whether confident tokens are served first.
    fill_zero_scores: whether tokens may choose experts with score 0. A sparse
      transport plan scores most experts 0; as ties go to the lower index, most
      of these choices would go to expert 0. If False, such a choice is dropped.
    renormalize: whether the weights of a token are divided by their sum over
      its K choices, dropped ones included. With K = 1 they are all 1.

  Returns:
    A plan that also stores the slots of each token; its weights are float32.

  Raises:
    ValueError: if K is not in [1, E], C is below 1, or scores and weights do
      not have the same shape (G, S, E).

  Example:
    Both tokens choose expert 0, which has one slot: the second is dropped.

    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.choice import token_choice
    >>> gates = jnp.array([[[0.6, 0.4], [0.9, 0.1]]])
    >>> plan = token_choice(gates, gates, num_selected_experts=1, capacity=1)
    >>> plan.experts_per_token().tolist()
    [[1.0, 0.0]]
    >>> plan = token_choice(
    ...   gates, gates, num_selected_experts=1, capacity=1, batch_priority=True
    ... )
    >>> plan.experts_per_token().tolist()
    [[0.0, 1.0]]
  """
  scores_GSE, weights_GSE = validate(scores, weights, capacity)
  num_tokens, num_experts = scores_GSE.shape[1:]
  if not 1 <= num_selected_experts <= num_experts:
    raise ValueError(
      f"num_selected_experts={num_selected_experts}: must be from 1 to "
      f"num_experts={num_experts}. Lower K or add experts."
    )
  best_GSK, experts_GSK = jax.lax.top_k(scores_GSE, num_selected_experts)
  if not fill_zero_scores:
    experts_GSK = jnp.where(best_GSK > 0, experts_GSK, num_experts)
  if renormalize:
    chosen_GSKE = jax.nn.one_hot(experts_GSK, num_experts, dtype="float32")
    chosen_GSE = chosen_GSKE.sum(axis=2)
    total_GS1 = jnp.sum(chosen_GSE * weights_GSE, axis=2, keepdims=True)
    weights_GSE = weights_GSE / jnp.maximum(total_GS1, _SMALLEST_TOTAL)
  priority_GS = best_GSK[..., 0] if batch_priority else None
  # Expert e serves the entries start[e], ..., start[e] + length[e] - 1.
  queue_GN = _service_order(experts_GSK, priority_GS)
  one_hot = jax.nn.one_hot(experts_GSK, num_experts, dtype=jnp.int32)
  length_GE = one_hot.sum((1, 2))
  start_GE = jnp.cumsum(length_GE, axis=1) - length_GE

  slot_11C = jnp.arange(capacity)[None, None]
  tokens_GEC = _take(queue_GN, start_GE[..., None] + slot_11C) % num_tokens
  filled_GEC = slot_11C < length_GE[..., None]
  tokens_GEC = jnp.where(filled_GEC, tokens_GEC, num_tokens)

  # The inverse of the queue gives the place of every choice in it.
  place_GKS = jnp.argsort(queue_GN, axis=1).reshape(
    *experts_GSK.swapaxes(1, 2).shape
  )
  slot_GSK = place_GKS.swapaxes(1, 2) - _take(start_GE, experts_GSK)
  slots_GSK = experts_GSK * capacity + slot_GSK
  kept_GSK = (slot_GSK < capacity) & (experts_GSK < num_experts)
  slots_GSK = jnp.where(kept_GSK, slots_GSK, num_experts * capacity)
  slot_weights_GEC = slot_weights(weights_GSE, tokens_GEC)
  return IndexPlan(tokens_GEC, slot_weights_GEC, num_tokens, slots_GSK)


def expert_choice(
  scores: Float[ArrayLike, "G S E"],
  weights: Float[ArrayLike, "G S E"],
  *,
  capacity: int,
  fill_zero_scores: bool = True,
) -> IndexPlan:
  """Each expert chooses the C tokens with its highest scores.

  A token may be chosen by many experts or by none (arXiv:2202.09368). If C > S,
  the slots beyond S stay empty.

  Args:
    scores: rank the tokens of each expert; any real dtype.
    weights: scale what returns from each expert; any real dtype.
    capacity: C, slots per expert.
    fill_zero_scores: whether an expert fills its remaining slots with tokens of
      score 0, such as those outside the support of a sparse transport plan.

  Returns:
    A plan whose slots hold tokens in decreasing order of score, ties by lower
    index; its weights are float32.

  Raises:
    ValueError: if C is below 1, or scores and weights do not have the same
      shape (G, S, E).

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.choice import expert_choice
    >>> gates = jnp.array([[[0.6, 0.4], [0.9, 0.1], [0.7, 0.3]]])
    >>> plan = expert_choice(gates, gates, capacity=1)
    >>> plan.tokens.tolist()
    [[[1], [0]]]
    >>> plan.experts_per_token().tolist()
    [[1.0, 1.0, 0.0]]
  """
  scores_GSE, weights_GSE = validate(scores, weights, capacity)
  return fill_slots(
    scores_GSE,
    weights_GSE,
    capacity,
    above=-jnp.inf if fill_zero_scores else 0.0,
  )


def fill_slots(
  scores_GSE: Float[Array, "G S E"],
  weights_GSE: Float[Array, "G S E"],
  capacity: int,
  above: float,
) -> IndexPlan:
  """Gives each expert's slots to its best tokens with scores above a bound."""
  num_tokens = scores_GSE.shape[1]
  num_ranked = min(capacity, num_tokens)
  best_GEC, tokens_GEC = jax.lax.top_k(scores_GSE.swapaxes(1, 2), num_ranked)
  tokens_GEC = jnp.where(best_GEC > above, tokens_GEC, num_tokens)
  empty = ((0, 0), (0, 0), (0, capacity - num_ranked))
  tokens_GEC = jnp.pad(tokens_GEC, empty, constant_values=num_tokens)
  slot_weights_GEC = slot_weights(weights_GSE, tokens_GEC)
  return IndexPlan(tokens_GEC, slot_weights_GEC, num_tokens)


def validate(
  scores: ArrayLike, weights: ArrayLike, capacity: int
) -> tuple[Array, Array]:
  """Casts scores and weights to float32; stops the gradient of scores.

  Raises:
    ValueError: if their shapes differ or are not (G, S, E), or C is below 1.
  """
  scores, weights = as_float32("scores", scores), as_float32("weights", weights)
  if scores.shape != weights.shape:
    raise ValueError(
      f"weights.shape={weights.shape}: must be scores.shape={scores.shape}. "
      "Give one weight for every score."
    )
  check_positive("capacity", capacity)
  return jax.lax.stop_gradient(scores), weights


def _service_order(
  experts_GSK: Int[Array, "G S K"], priority_GS: Float[Array, "G S"] | None
) -> Int[Array, "G K*S"]:
  """Sorts choices k * S + s by expert, then in the order of service.

  Choices of the expert E, which does not exist, come last.
  """
  num_groups, _, num_choices = experts_GSK.shape
  choice_11K = jnp.arange(num_choices)[None, None]
  expert_then_choice_GKS = (experts_GSK * num_choices + choice_11K).swapaxes(
    1, 2
  )
  keys_GKS = [expert_then_choice_GKS]
  if priority_GS is not None:
    shape = expert_then_choice_GKS.shape
    keys_GKS.append(jnp.broadcast_to(-priority_GS[:, None], shape))
  keys_GN = [key.reshape(num_groups, -1) for key in keys_GKS]
  index_GN = jax.lax.broadcasted_iota(jnp.int32, keys_GN[0].shape, 1)
  return jax.lax.sort(
    (*keys_GN, index_GN), num_keys=len(keys_GN), is_stable=True
  )[-1]


def _take(
  values: Int[Array, "G N"], index: Int[Array, "G a b"]
) -> Int[Array, "G a b"]:
  """values[g, index[g, a, b]]; indices out of bounds are clipped."""
  flat = index.reshape(index.shape[0], -1)
  taken = jnp.take_along_axis(values, flat, axis=1, mode="clip")
  return taken.reshape(index.shape)


def slot_weights(
  weights_GSE: Float[Array, "G S E"], tokens_GEC: Int[Array, "G E C"]
) -> Float[Array, "G E C"]:
  """The weight between each slot's expert and token; 0 for an empty slot."""
  return jnp.take_along_axis(
    weights_GSE.swapaxes(1, 2), tokens_GEC, axis=2, mode="fill", fill_value=0
  )


class Choice(Protocol):
  """Makes a plan with C slots per expert from scores and weights.

  Attributes:
    num_selected_experts: K in the formula of `expert_capacity`.
    tokens_choose: whether each token takes its top K experts; the load loss is
      defined only then.
    guarantees: bounds that its plans satisfy.
  """

  @property
  def num_selected_experts(self) -> int: ...

  @property
  def tokens_choose(self) -> bool: ...

  @property
  def guarantees(self) -> Guarantees: ...

  def __call__(
    self,
    scores: Float[ArrayLike, "G S E"],
    weights: Float[ArrayLike, "G S E"],
    *,
    capacity: int,
    deterministic: bool = True,
  ) -> IndexPlan: ...


@dataclasses.dataclass(frozen=True)
class TokenChoice:
  """`token_choice` with its options as fields.

  Attributes:
    num_selected_experts: K.
    batch_priority: whether confident tokens are served first.
    fill_zero_scores: whether tokens may choose experts with score 0.
    renormalize: whether the weights of a token's K choices sum to 1.
  """

  tokens_choose: ClassVar[bool] = True
  guarantees: ClassVar[Guarantees] = Guarantees(
    tokens_per_expert=("0", "C"),
    experts_per_token=("K", "K"),
    all_processed_if="if C >= S",
  )
  num_selected_experts: int = 1
  batch_priority: bool = False
  fill_zero_scores: bool = True
  renormalize: bool = False

  def __call__(
    self,
    scores: Float[ArrayLike, "G S E"],
    weights: Float[ArrayLike, "G S E"],
    *,
    capacity: int,
    deterministic: bool = True,
  ) -> IndexPlan:
    del deterministic
    return token_choice(
      scores,
      weights,
      num_selected_experts=self.num_selected_experts,
      capacity=capacity,
      batch_priority=self.batch_priority,
      fill_zero_scores=self.fill_zero_scores,
      renormalize=self.renormalize,
    )


@dataclasses.dataclass(frozen=True)
class ExpertChoice:
  """`expert_choice` with its option as a field.

  Attributes:
    fill_zero_scores: whether experts fill slots with tokens of score 0.
  """

  tokens_choose: ClassVar[bool] = False
  num_selected_experts: ClassVar[int] = 1
  guarantees: ClassVar[Guarantees] = Guarantees(
    tokens_per_expert=("min(C, S)", "min(C, S)"), experts_per_token=("0", "E")
  )
  fill_zero_scores: bool = True

  def __call__(
    self,
    scores: Float[ArrayLike, "G S E"],
    weights: Float[ArrayLike, "G S E"],
    *,
    capacity: int,
    deterministic: bool = True,
  ) -> IndexPlan:
    del deterministic
    return expert_choice(
      scores,
      weights,
      capacity=capacity,
      fill_zero_scores=self.fill_zero_scores,
    )
