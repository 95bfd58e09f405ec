"""Slow reference implementations of routing/, in NumPy float64."""

import itertools

import numpy as np


def softmax(x, axis=-1):
  shifted = np.exp(np.float64(x) - np.max(x, axis=axis, keepdims=True))
  return shifted / shifted.sum(axis=axis, keepdims=True)


def logsumexp(x, axis):
  top = np.max(x, axis=axis, keepdims=True)
  total = np.log(np.exp(x - top).sum(axis=axis, keepdims=True))
  return np.squeeze(total + top, axis)


def token_choice(scores, K, C, batch_priority, fill_zero_scores=True):
  """(S, E) scores to the list of tokens in each expert's slots."""
  num_tokens, num_experts = scores.shape
  preferences = [
    sorted(range(num_experts), key=lambda e: -s[e]) for s in scores
  ]
  order = list(range(num_tokens))
  if batch_priority:
    order.sort(key=lambda s: -max(scores[s]))
  slots = [[] for _ in range(num_experts)]
  for k in range(K):
    for s in order:
      expert = preferences[s][k]
      is_choice = fill_zero_scores or scores[s][expert] > 0
      if is_choice and len(slots[expert]) < C:
        slots[expert].append(s)
  return slots


def expert_choice(scores, C):
  """(S, E) scores to the list of tokens in each expert's slots."""
  return [sorted(range(len(s)), key=lambda t: -s[t])[:C] for s in scores.T]


def deferred_acceptance(scores, C, M):
  """(S, E) scores to the tokens of each expert, one proposal at a time.

  Experts propose to tokens in decreasing order of score until they have C; a
  token keeps the M experts with the highest scores.
  """
  num_tokens, num_experts = scores.shape
  lists = [list(np.argsort(-s, kind="stable")) for s in scores.T]
  held = [[] for _ in range(num_tokens)]
  slots = [[] for _ in range(num_experts)]
  while any(len(s) < C and left for s, left in zip(slots, lists, strict=True)):
    e = next(e for e in range(num_experts) if len(slots[e]) < C and lists[e])
    token = lists[e].pop(0)
    held[token].append(e)
    slots[e].append(token)
    if len(held[token]) > M:
      worst = min(held[token], key=lambda e: scores[token, e])
      held[token].remove(worst)
      slots[worst].remove(token)
  return slots


def routing_tensors(slots, weights, C):
  """Dispatch and Combine (S, E, C) of tokens in slots, weights (S, E)."""
  dispatch = np.zeros((*weights.shape, C))
  for e, tokens in enumerate(slots):
    for c, s in enumerate(tokens):
      dispatch[s, e, c] = 1
  return dispatch, dispatch * weights[:, :, None]


def sinkhorn(logits, num_iterations=20):
  """(S, E) logits to the transport plan, in the log domain."""
  logits = np.float64(logits)
  num_tokens, num_experts = logits.shape
  f = np.zeros(num_tokens)
  for _ in range(num_iterations):
    column = logsumexp(logits + f[:, None], axis=0)
    g = np.log(num_tokens / num_experts) - column
    f = -logsumexp(logits + g[None, :], axis=1)
  return np.exp(logits + f[:, None] + g[None, :])


def project_onto_simplex(x):
  """The nearest point of the simplex, by bisection on the threshold."""
  low, high = np.min(x) - 1, np.max(x)
  for _ in range(200):
    middle = (low + high) / 2
    if np.maximum(x - middle, 0).sum() > 1:
      low = middle
    else:
      high = middle
  return np.maximum(x - high, 0)


def project_onto_sparse_simplex(x, k):
  """The nearest point with at most k nonzeros: every support is tried."""
  best, best_distance = None, np.inf
  for support in itertools.combinations(range(len(x)), k):
    point = np.zeros(len(x))
    point[list(support)] = project_onto_simplex(x[list(support)])
    distance = np.sum((point - x) ** 2)
    if distance < best_distance - 1e-12:
      best, best_distance = point, distance
  return best


def sparse_column_value(x, mass, k):
  """max <p, x> - (mass/2)(|p|^2 - 1) over the k-sparse simplex."""
  p = project_onto_sparse_simplex(x / mass, k)
  return p @ x - mass / 2 * (p @ p - 1)


def semi_dual(alpha, affinity, k):
  """Objective of the k-sparse transport at alpha (S,), affinity (S, E)."""
  mass = affinity.shape[0] / affinity.shape[1]
  columns = [sparse_column_value(alpha + a, mass, k) for a in affinity.T]
  return mass * sum(columns) - alpha.sum()


def sparse_transport(affinity, k, mass, num_iterations=20):
  """Plan (a, b) with k nonzeros per column of the mass, by Adam on the dual.

  The rows tend to equal sums, by one entry of the dual variable each.
  """
  affinity = np.float64(affinity)
  row_mass = mass * affinity.shape[1] / affinity.shape[0]
  alpha, first, second = np.zeros((3, len(affinity)))

  def plan():
    return np.stack(
      [_sparse_column(alpha + column, k, mass) for column in affinity.T], axis=1
    )

  for step in range(1, num_iterations + 1):
    gradient = plan().sum(axis=1) - row_mass
    if np.linalg.norm(gradient) <= 1e-3:
      break
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    scale = np.sqrt(second / (1 - 0.999**step)) + 1e-8
    alpha = alpha - 0.01 * first / (1 - 0.9**step) / scale
  return plan()


def _sparse_column(x, k, mass):
  column = np.zeros(len(x))
  largest = np.argsort(-x, kind="stable")[:k]
  column[largest] = mass * project_onto_simplex(x[largest] / mass)
  return column
