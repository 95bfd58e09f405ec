"""What ROUTERS.md says in words, as formulas in NumPy float64.

Every text in the columns "scores", "Dispatch" and "Combine" is a key here.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from . import oracles
from .oracles import softmax


@dataclasses.dataclass(frozen=True)
class Given:
  """What the tensors of a sparse router depend on.

  Attributes:
    logits: by which tokens and experts are ranked, (G, S, E).
    weighed: of which the weights are functions.
    state: of the controller, by name.
    C: slots per expert.
    K: experts that a token chooses.
    M: bound on experts per token.
    priority: whether confident tokens are served first.
  """

  logits: np.ndarray
  weighed: np.ndarray
  state: Mapping[str, np.ndarray]
  C: int
  K: int
  M: int
  priority: bool


def _sigmoid(x):
  return 1 / (1 + np.exp(-np.float64(x)))


def _groups(function: Callable) -> Callable:
  """The function of each group, stacked."""
  return lambda *arrays: np.stack(
    [function(*group) for group in zip(*arrays, strict=True)]
  )


def _column_sparse(given: Given) -> np.ndarray:
  mass = given.logits.shape[1] / given.logits.shape[2]
  solve = _groups(lambda a: oracles.sparse_transport(a, given.C, mass))
  return solve(softmax(given.logits))


def _row_sparse(given: Given) -> np.ndarray:
  solve = _groups(lambda a: oracles.sparse_transport(a.T, given.K, 1).T)
  return solve(softmax(given.logits))


SCORES: dict[str, Callable[[Given], np.ndarray]] = {
  "softmax over experts": lambda given: softmax(given.logits),
  "softmax over experts of cosines": lambda given: softmax(given.logits),
  "Sinkhorn transport plan": lambda given: _groups(oracles.sinkhorn)(
    given.logits
  ),
  "transport plan with K nonzeros per token": _row_sparse,
  "transport plan with C nonzeros per expert": _column_sparse,
  "sigmoid": lambda given: _sigmoid(given.logits),
  "sigmoid plus the bias of the expert": lambda given: (
    _sigmoid(given.logits) + given.state["bias"]
  ),
  "softmax over experts less the threshold of the expert": lambda given: (
    softmax(given.logits) - given.state["threshold"]
  ),
  "positive part of the logits": lambda given: np.maximum(given.logits, 0),
  "the logits": lambda given: given.logits,
  "random numbers": lambda given: softmax(given.logits),
  "hash of the position": lambda given: given.logits,
  "position modulo E": lambda given: given.logits,
}


def _token_choice(given: Given, scores: np.ndarray, **options) -> list:
  return oracles.token_choice(
    scores, given.K, given.C, given.priority, **options
  )


def _above_zero(given: Given, scores: np.ndarray) -> list:
  return [list(np.flatnonzero(s > 0)[: given.C]) for s in scores.T]


# (given, scores of a group) to the tokens in each expert's slots. That of
# balanced assignment is not unique: `test_choices` has its sum of scores.
DISPATCH: dict[str, Callable[[Given, np.ndarray], list]] = {
  "the K largest of each token": _token_choice,
  "the K largest of each token, if above 0": lambda given, scores: (
    _token_choice(given, scores, fill_zero_scores=False)
  ),
  "the C largest of each expert": lambda given, scores: oracles.expert_choice(
    scores, given.C
  ),
  "the C largest of each expert, of which a token accepts M": (
    lambda given, scores: oracles.deferred_acceptance(scores, given.C, given.M)
  ),
  "all above 0": _above_zero,
}


def _over_chosen(weights: np.ndarray, scores: np.ndarray, K: int) -> np.ndarray:
  """Divided by the sum over the K experts with the largest scores."""
  best = np.argsort(-scores, axis=2, kind="stable")[..., :K]
  total = np.take_along_axis(weights, best, axis=2).sum(axis=2)
  return weights / total[..., None]


# (given, scores) to the weights of all pairs, (G, S, E).
COMBINE: dict[str, Callable[[Given, np.ndarray], np.ndarray]] = {
  "softmax over experts": lambda given, _: softmax(given.weighed),
  "softmax over experts of cosines": lambda given, _: softmax(given.weighed),
  "softmax over the K chosen experts": lambda given, scores: _over_chosen(
    np.exp(given.weighed), scores, given.K
  ),
  "sigmoid": lambda given, _: _sigmoid(given.weighed),
  "sigmoid, divided by the sum over the K": lambda given, scores: _over_chosen(
    _sigmoid(given.weighed), scores, given.K
  ),
  "the scores": lambda _, scores: scores,
  "1 / K": lambda given, scores: np.full(scores.shape, 1 / given.K),
}

# Of soft routers: logits (G, S, E, C) to the tensors.
SOFT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "softmax over tokens": lambda logits: softmax(logits, axis=1),
  "softmax over slots": lambda logits: softmax(
    logits.reshape(*logits.shape[:2], -1)
  ).reshape(logits.shape),
  "1 / S": lambda logits: np.full(logits.shape, 1 / logits.shape[1]),
  "1 / (E C)": lambda logits: np.full(
    logits.shape, 1 / np.prod(logits.shape[2:])
  ),
}
