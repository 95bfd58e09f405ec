"""Who picks: tokens choose experts, or experts choose tokens.

Both functions turn scores, which decide who goes where, and weights, which
decide how much of an expert's output comes back, into an `IndexPlan`. Scores
only pick: no gradient flows through them. Ties go to the lower index.
"""

import dataclasses
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from vmoe_study.routing.arguments import check_positive, float32
from vmoe_study.routing.plan import IndexPlan


def token_choice(
  scores: Float[ArrayLike, "G S E"],
  weights: Float[ArrayLike, "G S E"],
  *,
  num_selected_experts: int,
  capacity: int,
  batch_priority: bool = False,
  fill_zero_scores: bool = True,
) -> IndexPlan:
  """Each token takes the K experts that it scores highest (2106.05974).

  An expert serves all first choices before all second choices and, within a
  choice, tokens by position, or with `batch_priority` by decreasing largest
  score. A choice that finds its expert full is dropped.

  Args:
    scores: who goes where.
    weights: how much comes back.
    num_selected_experts: K, in [1, E].
    capacity: C, slots per expert.
    batch_priority: serve confident tokens first.
    fill_zero_scores: whether a token may choose experts that it scores 0, as
      it does all but a few in a sparse transport plan. They tie, so that it
      would choose the first of them: expert 0, mostly. If not, such a choice
      takes no slot.

  Returns:
    A plan that knows the slots of each token; its weights are float32.

  Raises:
    ValueError: if K is not in [1, E], C is below 1, or scores and weights are
      not of one shape (G, S, E).
  """
  scores, weights = _checked(scores, weights, capacity)
  num_tokens, num_experts = scores.shape[1:]
  if not 1 <= num_selected_experts <= num_experts:
    raise ValueError(
      f"num_selected_experts={num_selected_experts}: a token can choose from "
      f"1 to num_experts={num_experts} experts. Lower K or add experts."
    )
  best, experts = jax.lax.top_k(scores, num_selected_experts)
  if not fill_zero_scores:
    experts = jnp.where(best > 0, experts, num_experts)
  priority = best[..., 0] if batch_priority else None
  queue = _queue(experts, priority)
  lengths = jax.nn.one_hot(experts, num_experts, dtype=jnp.int32).sum((1, 2))
  starts = jnp.cumsum(lengths, axis=1) - lengths

  slot = jnp.arange(capacity)[None, None]
  tokens = _take(queue, starts[..., None] + slot) % num_tokens
  served = slot < lengths[..., None]
  tokens = jnp.where(served, tokens, num_tokens)

  rank = jnp.argsort(queue, axis=1).reshape(*experts.swapaxes(1, 2).shape)
  rank = rank.swapaxes(1, 2) - _take(starts, experts)
  slots = experts * capacity + rank
  kept = (rank < capacity) & (experts < num_experts)
  slots = jnp.where(kept, slots, num_experts * capacity)
  return IndexPlan(tokens, _slot_weights(weights, tokens), num_tokens, slots)


def expert_choice(
  scores: Float[ArrayLike, "G S E"],
  weights: Float[ArrayLike, "G S E"],
  *,
  capacity: int,
  fill_zero_scores: bool = True,
) -> IndexPlan:
  """Each expert takes the C tokens that score highest for it (2202.09368).

  A token may be taken by many experts or by none. If C > S, the slots beyond
  S stay empty.

  Args:
    scores: who goes where.
    weights: how much comes back.
    capacity: C, slots per expert.
    fill_zero_scores: whether an expert that has slots left takes tokens that
      score 0, as those outside a sparse transport plan do.

  Returns:
    A plan whose slots hold tokens in decreasing order of score, the lower index
    first among equals; its weights are float32.

  Raises:
    ValueError: if C is below 1, or scores and weights are not of one shape
      (G, S, E).
  """
  scores, weights = _checked(scores, weights, capacity)
  num_tokens = scores.shape[1]
  best, tokens = jax.lax.top_k(scores.swapaxes(1, 2), min(capacity, num_tokens))
  if not fill_zero_scores:
    tokens = jnp.where(best > 0, tokens, num_tokens)
  empty = ((0, 0), (0, 0), (0, capacity - tokens.shape[-1]))
  tokens = jnp.pad(tokens, empty, constant_values=num_tokens)
  return IndexPlan(tokens, _slot_weights(weights, tokens), num_tokens)


def _checked(scores, weights, capacity: int) -> tuple[Array, Array]:
  """Both in float32, if they suit each other; scores pass no gradient."""
  scores, weights = float32("scores", scores), float32("weights", weights)
  if scores.shape != weights.shape:
    raise ValueError(
      f"scores of shape {scores.shape} and weights of shape {weights.shape}: "
      "must have the same. Give every score (G, S, E) its weight."
    )
  check_positive("capacity", capacity)
  return jax.lax.stop_gradient(scores), weights


def _queue(
  experts: Int[Array, "G S K"], priority: Float[Array, "G S"] | None
) -> Int[Array, "G K*S"]:
  """All choices k*S + s: by expert, then in the order that it serves them.

  Those of expert E, which does not exist, are last.
  """
  num_groups, _, num_choices = experts.shape
  choice = jnp.arange(num_choices)[None, None]
  by_choice = (experts * num_choices + choice).swapaxes(1, 2)
  keys = [by_choice]
  if priority is not None:
    keys.append(jnp.broadcast_to(-priority[:, None], by_choice.shape))
  flat = [key.reshape(num_groups, -1) for key in keys]
  index = jax.lax.broadcasted_iota(jnp.int32, flat[0].shape, 1)
  return jax.lax.sort((*flat, index), num_keys=len(flat), is_stable=True)[-1]


def _take(values: Int[Array, "G N"], index: Int[Array, "G a b"]):
  """values[g, index[g, a, b]]; the index is clipped to its bounds."""
  flat = index.reshape(index.shape[0], -1)
  taken = jnp.take_along_axis(values, flat, axis=1, mode="clip")
  return taken.reshape(index.shape)


def _slot_weights(
  weights: Float[Array, "G S E"], tokens: Int[Array, "G E C"]
) -> Float[Array, "G E C"]:
  """Each slot's token's weight for the slot's expert; 0 for an empty slot."""
  return jnp.take_along_axis(
    weights.swapaxes(1, 2), tokens, axis=2, mode="fill", fill_value=0
  )


class Choice(Protocol):
  """Scores and weights to a plan with C slots per expert.

  Attributes:
    num_selected_experts: K, choices of each token that slots are made for.
    tokens_choose: whether each token takes its top K experts, which is what
      the load loss is about.
  """

  @property
  def num_selected_experts(self) -> int: ...

  @property
  def tokens_choose(self) -> bool: ...

  def __call__(
    self,
    scores: Float[ArrayLike, "G S E"],
    weights: Float[ArrayLike, "G S E"],
    *,
    capacity: int,
  ) -> IndexPlan: ...


@dataclasses.dataclass(frozen=True)
class TokenChoice:
  """`token_choice` with its options."""

  tokens_choose: ClassVar[bool] = True
  num_selected_experts: int = 1
  batch_priority: bool = False
  fill_zero_scores: bool = True

  def __call__(
    self,
    scores: Float[ArrayLike, "G S E"],
    weights: Float[ArrayLike, "G S E"],
    *,
    capacity: int,
  ) -> IndexPlan:
    return token_choice(
      scores,
      weights,
      num_selected_experts=self.num_selected_experts,
      capacity=capacity,
      batch_priority=self.batch_priority,
      fill_zero_scores=self.fill_zero_scores,
    )


@dataclasses.dataclass(frozen=True)
class ExpertChoice:
  """`expert_choice`; its capacity does not depend on a number of choices."""

  tokens_choose: ClassVar[bool] = False
  num_selected_experts: ClassVar[int] = 1
  fill_zero_scores: bool = True

  def __call__(
    self,
    scores: Float[ArrayLike, "G S E"],
    weights: Float[ArrayLike, "G S E"],
    *,
    capacity: int,
  ) -> IndexPlan:
    return expert_choice(
      scores,
      weights,
      capacity=capacity,
      fill_zero_scores=self.fill_zero_scores,
    )
