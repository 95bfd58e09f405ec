"""Threshold choice: a token goes to every expert that scores it high enough.

No token is compared with another one: nothing is sorted, and a token's experts
do not depend on the rest of its group as long as the experts have free slots.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vmoe_study.routing.choice import slot_weights, validate
from vmoe_study.routing.guarantees import Guarantees
from vmoe_study.routing.plan import IndexPlan


def threshold_choice(
  scores: Float[ArrayLike, "G S E"],
  weights: Float[ArrayLike, "G S E"],
  *,
  capacity: int,
  threshold: float = 0.0,
) -> IndexPlan:
  """Every pair of a token and an expert with a score above the threshold.

  An expert serves tokens in the order of their positions. Tokens that find it
  full are dropped.

  Args:
    scores: score of every token and expert; any real dtype.
    weights: scale what returns from each expert; any real dtype.
    capacity: C, slots per expert.
    threshold: scores above it are chosen.

  Returns:
    A plan whose slots hold tokens in order; its weights are float32.

  Raises:
    ValueError: if C is below 1, or scores and weights do not have the same
      shape (G, S, E).

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.threshold import threshold_choice
    >>> gates = jnp.array([[[0.6, 0.4], [0.9, 0.0], [0.7, 0.3]]])
    >>> plan = threshold_choice(gates, gates, capacity=2)
    >>> plan.tokens.tolist()
    [[[0, 1], [0, 2]]]
  """
  scores_GSE, weights_GSE = validate(scores, weights, capacity)
  num_tokens = scores_GSE.shape[1]
  chosen_GES = (scores_GSE > threshold).swapaxes(1, 2)
  place_GES = jnp.cumsum(chosen_GES, axis=2) - 1
  slot_GES = jnp.where(chosen_GES, place_GES, capacity)  # C: in none.
  tokens_GEC = _inverse(slot_GES, num_tokens, capacity)
  return IndexPlan(
    tokens_GEC, slot_weights(weights_GSE, tokens_GEC), num_tokens
  )


def _inverse(slot_GES: Array, num_tokens: int, capacity: int) -> Array:
  """The token of each slot, S for none, from the slot of each token."""
  num_groups, num_experts, _ = slot_GES.shape
  group_G11 = jnp.arange(num_groups)[:, None, None]
  expert_E1 = jnp.arange(num_experts)[:, None]
  empty_GEC = jnp.full((num_groups, num_experts, capacity), num_tokens)
  return empty_GEC.at[group_G11, expert_E1, slot_GES].set(
    jnp.arange(num_tokens), mode="drop"
  )


@dataclasses.dataclass(frozen=True)
class ThresholdChoice:
  """`threshold_choice` with its option as a field.

  Attributes:
    mean_experts_per_token: K, the target of controllers and the K of
      `expert_capacity`.
    threshold: scores above it are chosen.
  """

  tokens_choose: ClassVar[bool] = False
  guarantees: ClassVar[Guarantees] = Guarantees(
    tokens_per_expert=("0", "C"), experts_per_token=("0", "E")
  )
  mean_experts_per_token: int = 1
  threshold: float = 0.0

  @property
  def num_selected_experts(self) -> int:
    """K in the formula of `expert_capacity`."""
    return self.mean_experts_per_token

  def __call__(
    self,
    scores: Float[ArrayLike, "G S E"],
    weights: Float[ArrayLike, "G S E"],
    *,
    capacity: int,
    deterministic: bool = True,
  ) -> IndexPlan:
    del deterministic
    return threshold_choice(
      scores, weights, capacity=capacity, threshold=self.threshold
    )
