"""Balanced assignment: every token to one expert, at most C tokens per expert.

The assignment of BASE layers (arXiv:2103.16716), which maximises the sum of the
scores of all assigned pairs, by an auction (Bertsekas, 1988).

Experts sell C slots each. A token without a slot bids for the expert e with the
largest surplus, the score minus the price of e. The bid raises the price until
the token is indifferent between e and its second choice, plus a small epsilon.
An expert keeps the C highest bids; once all of its slots are sold, its price is
the lowest of these bids.

Lemma. If all tokens have slots at the end and E C = S, the sum of scores is
within S epsilon of the optimum.

1. When a token bids, its surplus at e after the bid is its second-best surplus
   minus epsilon. Prices never fall, so as long as it holds the slot its surplus
   is within epsilon of the largest one at current prices.
2. Let p be the final prices. Any assignment of all tokens to all slots has the
   total score sum_s (score - p) + sum_e C p_e. The second sum is the same for
   every assignment, and each term of the first is at most epsilon above that of
   the assignment found.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from vmoe_study.routing.arguments import as_float32
from vmoe_study.routing.capped import best_of_row
from vmoe_study.routing.choice import token_choice, validate
from vmoe_study.routing.guarantees import Guarantees
from vmoe_study.routing.plan import IndexPlan


def auction(
  scores: Float[ArrayLike, "G S E"],
  capacity: int,
  *,
  num_iterations: int = 50,
  epsilon: float = 0.1,
) -> Int[Array, "G S"]:
  """Bids until every token has a slot, or for a number of rounds.

  Args:
    scores: score of every token and expert; any real dtype.
    capacity: C, slots per expert.
    num_iterations: number of rounds; in each, all tokens without a slot bid.
    epsilon: smallest price increase, in standard deviations of the scores.

  Returns:
    The expert of every token; E for a token without a slot.

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.assignment import auction
    >>> auction(jnp.array([[[0.6, 0.4], [0.9, 0.1]]]), capacity=1).tolist()
    [[1, 0]]
  """
  scores = as_float32("scores", scores)
  num_experts = scores.shape[2]
  epsilon_G1 = epsilon * jnp.maximum(scores.std(axis=(1, 2)), 1e-6)[:, None]

  def goes_on(carry):
    rounds, bids_GSE, _ = carry
    return (rounds < num_iterations) & jnp.any(_without_slot(bids_GSE))

  def bid(carry):
    rounds, bids_GSE, price_GE = carry
    surplus_GSE = scores - price_GE[:, None]
    top_GS2, experts_GS2 = jax.lax.top_k(surplus_GSE, min(2, num_experts))
    wanted_GSE = jax.nn.one_hot(experts_GS2[..., 0], num_experts, dtype=bool)
    raise_GS = top_GS2[..., 0] - top_GS2[..., -1] + epsilon_G1
    new_GSE = price_GE[:, None] + raise_GS[..., None]
    bidding_GSE = wanted_GSE & _without_slot(bids_GSE)[..., None]
    bids_GES = jnp.where(bidding_GSE, new_GSE, bids_GSE).swapaxes(1, 2)
    kept_GES = best_of_row(bids_GES, bids_GES > -jnp.inf, capacity)
    lowest_GE = jnp.where(kept_GES, bids_GES, jnp.inf).min(axis=2)
    is_sold_out_GE = kept_GES.sum(axis=2) == capacity
    bids_GSE = jnp.where(kept_GES, bids_GES, -jnp.inf).swapaxes(1, 2)
    return rounds + 1, bids_GSE, jnp.where(is_sold_out_GE, lowest_GE, price_GE)

  none = jnp.full_like(scores, -jnp.inf), jnp.zeros_like(scores[:, 0])
  _, bids_GSE, _ = jax.lax.while_loop(goes_on, bid, (0, *none))
  return jnp.where(
    _without_slot(bids_GSE), num_experts, jnp.argmax(bids_GSE, axis=2)
  )


def _without_slot(bids_GSE: Float[Array, "G S E"]) -> Bool[Array, "G S"]:
  return jnp.all(bids_GSE == -jnp.inf, axis=2)


def balanced_assignment(
  scores: Float[ArrayLike, "G S E"],
  weights: Float[ArrayLike, "G S E"],
  *,
  capacity: int,
  num_iterations: int = 50,
  epsilon: float = 0.1,
) -> IndexPlan:
  """Assigns every token to one expert by an `auction`.

  Tokens that the auction leaves without a slot get the free slots, in order.

  Args:
    scores: score of every token and expert; any real dtype.
    weights: scale what returns from each expert; any real dtype.
    capacity: C, slots per expert; if E C < S, tokens are dropped.
    num_iterations: see `auction`.
    epsilon: see `auction`.

  Returns:
    A plan that also stores the slot of each token; its weights are float32.

  Raises:
    ValueError: if C is below 1, or scores and weights do not have the same
      shape (G, S, E).

  Example:
    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.assignment import balanced_assignment
    >>> scores = jnp.array([[[0.6, 0.4], [0.9, 0.1]]])
    >>> balanced_assignment(scores, scores, capacity=1).tokens.tolist()
    [[[1], [0]]]
  """
  scores_GSE, weights_GSE = validate(scores, weights, capacity)
  num_experts = scores_GSE.shape[2]
  expert_GS = auction(
    scores_GSE, capacity, num_iterations=num_iterations, epsilon=epsilon
  )
  load_GE = jax.nn.one_hot(expert_GS, num_experts, dtype=jnp.int32).sum(axis=1)
  free_until_GE = jnp.cumsum(capacity - load_GE, axis=1)
  is_left_GS = expert_GS == num_experts
  rank_GS = jnp.cumsum(is_left_GS, axis=1) - 1
  next_GS = jnp.sum(rank_GS[..., None] >= free_until_GE[:, None], axis=2)
  expert_GS = jnp.where(is_left_GS, next_GS, expert_GS)
  return token_choice(
    jax.nn.one_hot(expert_GS, num_experts),
    weights_GSE,
    num_selected_experts=1,
    capacity=capacity,
    fill_zero_scores=False,
  )


@dataclasses.dataclass(frozen=True)
class BalancedAssignment:
  """`balanced_assignment` in training, each token's best expert in evaluation.

  Attributes:
    num_iterations: see `auction`.
    epsilon: see `auction`.
  """

  tokens_choose: ClassVar[bool] = False
  num_selected_experts: ClassVar[int] = 1
  guarantees: ClassVar[Guarantees] = Guarantees(
    tokens_per_expert=("0", "C"),
    experts_per_token=("1", "1"),
    all_processed_if="if E C >= K S",
  )
  num_iterations: int = 50
  epsilon: float = 0.1

  def __call__(
    self,
    scores: Float[ArrayLike, "G S E"],
    weights: Float[ArrayLike, "G S E"],
    *,
    capacity: int,
    deterministic: bool = True,
  ) -> IndexPlan:
    if deterministic:
      return token_choice(
        scores, weights, num_selected_experts=1, capacity=capacity
      )
    return balanced_assignment(
      scores,
      weights,
      capacity=capacity,
      num_iterations=self.num_iterations,
      epsilon=self.epsilon,
    )
