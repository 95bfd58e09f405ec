"""Controllers: load balancing by a state that every training step updates.

Depending on its state, a controller shifts the scores of a router or adds a
loss. The state is not a parameter: neither gradients nor weight decay change
it. Every training step measures statistics of each group and updates the state
once, by their mean over all groups. Evaluation uses the state as it is.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

State = dict[str, Array]


class Controller(abc.ABC):
  """Defines a state, its effects and its update.

  Its dataclass fields are options of the routers that use it. Where a method
  takes scores of several groups, the state has a leading axis G, with a copy
  for each group.
  """

  @abc.abstractmethod
  def initial_state(self, num_experts: int) -> State:
    """The state before the first step, float32, by name."""

  def shift_scores(
    self, scores: Float[Array, "G S E"], state: State
  ) -> Float[Array, "G S E"]:
    """The scores by which the choice selects."""
    del state
    return scores

  def losses(
    self,
    weights: Float[Array, "G S E"],
    state: State,
    num_selected_experts: int,
  ) -> dict[str, Float[Array, "G"]]:
    """Losses on the weights, by name, to be added to the training loss."""
    del weights, state, num_selected_experts
    return {}

  @abc.abstractmethod
  def statistics(
    self, scores: Float[Array, "G S E"], state: State, num_selected_experts: int
  ) -> dict[str, Float[Array, "G ..."]]:
    """Statistics of each group for the update, by name."""

  @abc.abstractmethod
  def update(self, state: State, statistics: dict[str, Array]) -> State:
    """Returns the next state; neither argument has an axis G."""


@dataclasses.dataclass(frozen=True)
class LoadBias(Controller):
  """Adds a bias to the scores of each expert (arXiv:2408.15664).

  The bias rises by a fixed amount after a step in which fewer tokens than
  average chose the expert, and falls after a step in which more did. Choices
  that were dropped because the expert was full count too.

  Attributes:
    bias_update_rate: the amount.
  """

  bias_update_rate: float = 1e-3

  def initial_state(self, num_experts: int) -> State:
    return {"bias": jnp.zeros(num_experts, jnp.float32)}

  def shift_scores(
    self, scores: Float[Array, "G S E"], state: State
  ) -> Float[Array, "G S E"]:
    return scores + state["bias"][:, None]

  def statistics(
    self, scores: Float[Array, "G S E"], state: State, num_selected_experts: int
  ) -> dict[str, Float[Array, "G ..."]]:
    _, experts_GSK = jax.lax.top_k(
      self.shift_scores(scores, state), num_selected_experts
    )
    wanted_GSKE = jax.nn.one_hot(experts_GSK, scores.shape[2], dtype="float32")
    return {"demand": wanted_GSKE.sum(axis=2).mean(axis=1)}

  def update(self, state: State, statistics: dict[str, Array]) -> State:
    demand_E = statistics["demand"]
    step_E = self.bias_update_rate * jnp.sign(demand_E.mean() - demand_E)
    return {"bias": state["bias"] + step_E}


@dataclasses.dataclass(frozen=True)
class SparsityControl(Controller):
  """Scales a loss until a token has K positive weights on average.

  The loss of ReMoE (arXiv:2412.14711): the sum of a token's weights, each times
  the load of its expert, so that overloaded experts are pressed down first. Its
  coefficient grows by a factor after a step in which tokens have more than K
  positive scores on average, and shrinks by the same factor after a step with
  fewer. Every layer has its own coefficient here, where the paper has one for
  all.

  Attributes:
    coefficient_update_factor: the factor.
    initial_coefficient: coefficient before the first step.
  """

  coefficient_update_factor: float = 1.2
  initial_coefficient: float = 1e-8

  def initial_state(self, num_experts: int) -> State:
    del num_experts
    return {"coefficient": jnp.float32(self.initial_coefficient)}

  def losses(
    self,
    weights: Float[Array, "G S E"],
    state: State,
    num_selected_experts: int,
  ) -> dict[str, Float[Array, "G"]]:
    load_GE = jnp.mean(weights > 0, axis=1, dtype=jnp.float32)
    load_GE *= weights.shape[2] / num_selected_experts
    loss_G = jnp.mean(jnp.sum(load_GE[:, None] * weights, axis=2), axis=1)
    return {"sparsity_loss": state["coefficient"] * loss_G}

  def statistics(
    self, scores: Float[Array, "G S E"], state: State, num_selected_experts: int
  ) -> dict[str, Float[Array, "G ..."]]:
    positive_G = jnp.mean(jnp.sum(scores > 0, axis=2), axis=1, dtype="float32")
    return {"excess": positive_G - num_selected_experts}

  def update(self, state: State, statistics: dict[str, Array]) -> State:
    exponent = jnp.sign(statistics["excess"])
    factor = self.coefficient_update_factor**exponent
    return {"coefficient": state["coefficient"] * factor}


@dataclasses.dataclass(frozen=True)
class ExpertThreshold(Controller):
  """Subtracts a threshold from the scores of each expert (arXiv:2603.11535).

  The threshold is a moving average of the score that S K / E tokens of a group
  reach, so about as many tokens get a positive shifted score as expert choice
  would select. The choice itself compares no tokens: only the moving average,
  which evaluation does not change, depends on the ranking of the tokens in a
  group.

  Attributes:
    threshold_decay: decay of the moving average, per step.
  """

  threshold_decay: float = 0.99

  def initial_state(self, num_experts: int) -> State:
    """1 / E, the mean of the softmax probabilities."""
    return {"threshold": jnp.full(num_experts, 1 / num_experts, jnp.float32)}

  def shift_scores(
    self, scores: Float[Array, "G S E"], state: State
  ) -> Float[Array, "G S E"]:
    return scores - state["threshold"][:, None]

  def statistics(
    self, scores: Float[Array, "G S E"], state: State, num_selected_experts: int
  ) -> dict[str, Float[Array, "G ..."]]:
    del state
    num_tokens, num_experts = scores.shape[1:]
    count = max(round(num_tokens * num_selected_experts / num_experts), 1)
    best_GEC, _ = jax.lax.top_k(scores.swapaxes(1, 2), min(count, num_tokens))
    return {"reached": best_GEC[..., -1]}

  def update(self, state: State, statistics: dict[str, Array]) -> State:
    old, new = state["threshold"], statistics["reached"]
    decay = self.threshold_decay
    return {"threshold": decay * old + (1 - decay) * new}
