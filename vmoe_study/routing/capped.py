"""Capped expert choice: expert choice with a bound on experts per token.

Experts propose to tokens and tokens keep the best proposals: the deferred
acceptance of Gale and Shapley (1962), with many partners on both sides. In the
source of expert choice (arXiv:2202.09368), a linear program enforces the bound,
approximately; this rule holds it exactly.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from vmoe_study.routing.arguments import check_positive
from vmoe_study.routing.choice import fill_slots, validate
from vmoe_study.routing.guarantees import Guarantees
from vmoe_study.routing.plan import IndexPlan


def capped_expert_choice(
  scores: Float[ArrayLike, "G S E"],
  weights: Float[ArrayLike, "G S E"],
  *,
  capacity: int,
  max_experts_per_token: int,
  num_rounds: int = 10,
) -> IndexPlan:
  """Each expert chooses C tokens, and each token accepts at most M experts.

  In every round each expert proposes to the C tokens with its highest scores
  that have not refused it, and each token refuses all proposals but the M with
  the highest scores. Once no token refuses, no expert and token would rather
  have each other than what they have.

  Args:
    scores: rank tokens and experts for each other; any real dtype.
    weights: scale what returns from each expert; any real dtype.
    capacity: C, slots per expert.
    max_experts_per_token: M.
    num_rounds: rounds of proposals. Slots that are free after the last round
      stay empty.

  Returns:
    A plan whose slots hold tokens in decreasing order of score; its weights are
    float32.

  Raises:
    ValueError: if C or M is below 1, or scores and weights do not have the same
      shape (G, S, E).

  Example:
    Both experts prefer token 1, which accepts only one of them.

    >>> import jax.numpy as jnp
    >>> from vmoe_study.routing.capped import capped_expert_choice
    >>> gates = jnp.array([[[0.6, 0.4], [0.9, 0.8], [0.7, 0.3]]])
    >>> plan = capped_expert_choice(
    ...   gates, gates, capacity=1, max_experts_per_token=1
    ... )
    >>> plan.tokens.tolist()
    [[[1], [0]]]
  """
  scores_GSE, weights_GSE = validate(scores, weights, capacity)
  check_positive("max_experts_per_token", max_experts_per_token)

  def accepted(free_GSE):
    proposed_GSE = best_of_row(
      scores_GSE.swapaxes(1, 2), free_GSE.swapaxes(1, 2), capacity
    ).swapaxes(1, 2)
    kept_GSE = best_of_row(scores_GSE, proposed_GSE, max_experts_per_token)
    return proposed_GSE, kept_GSE

  def refuse(_, free_GSE):
    proposed_GSE, kept_GSE = accepted(free_GSE)
    return free_GSE & (kept_GSE | ~proposed_GSE)

  free_GSE = jnp.ones_like(scores_GSE, bool)
  free_GSE = jax.lax.fori_loop(0, num_rounds - 1, refuse, free_GSE)
  _, kept_GSE = accepted(free_GSE)
  scores_GSE = jnp.where(kept_GSE, scores_GSE, -jnp.inf)
  return fill_slots(scores_GSE, weights_GSE, capacity, above=-jnp.inf)


def best_of_row(
  scores: Float[Array, "G a b"], among: Bool[Array, "G a b"], count: int
) -> Bool[Array, "G a b"]:
  """Marks the `count` best candidates of each row."""
  scores = jnp.where(among, scores, -jnp.inf)
  _, best = jax.lax.top_k(scores, min(count, scores.shape[2]))
  group = jnp.arange(len(scores))[:, None, None]
  row = jnp.arange(scores.shape[1])[:, None]
  return among & jnp.zeros_like(among).at[group, row, best].set(True)


@dataclasses.dataclass(frozen=True)
class CappedExpertChoice:
  """`capped_expert_choice` with its options as fields.

  Attributes:
    max_experts_per_token: M.
    num_rounds: rounds of proposals.
  """

  tokens_choose: ClassVar[bool] = False
  num_selected_experts: ClassVar[int] = 1
  guarantees: ClassVar[Guarantees] = Guarantees(
    tokens_per_expert=("0", "C"), experts_per_token=("0", "M")
  )
  max_experts_per_token: int = 2
  num_rounds: int = 10

  def __call__(
    self,
    scores: Float[ArrayLike, "G S E"],
    weights: Float[ArrayLike, "G S E"],
    *,
    capacity: int,
    deterministic: bool = True,
  ) -> IndexPlan:
    del deterministic
    return capped_expert_choice(
      scores,
      weights,
      capacity=capacity,
      max_experts_per_token=self.max_experts_per_token,
      num_rounds=self.num_rounds,
    )
