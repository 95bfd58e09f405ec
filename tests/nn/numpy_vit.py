"""A dense Vision Transformer for one image, in plain numpy float64."""

import math

import numpy as np


def _norm(x, p):
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return x * p["scale"] + p.get("bias", 0)


def _gelu(x):
  inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
  return x / 2 * (1 + np.tanh(inner))


def _mlp(x, p):
  hidden = _gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
  return hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def _attend(queries, x, p):
  """Multi-head attention, one head at a time."""
  total = p["out"]["bias"]
  for head in range(p["out"]["kernel"].shape[0]):
    q, k, v = (
      source @ p[name]["kernel"][:, head] + p[name]["bias"][head]
      for name, source in [("query", queries), ("key", x), ("value", x)]
    )
    if "query_ln" in p:
      q, k = _norm(q, p["query_ln"]), _norm(k, p["key_ln"])
    scores = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
    shares = scores / scores.sum(axis=1, keepdims=True)
    total = total + shares @ v @ p["out"]["kernel"][head]
  return total


def _patches(image, p, patch):
  rows, columns = image.shape[0] // patch, image.shape[1] // patch
  tokens = [
    np.tensordot(
      image[r * patch : (r + 1) * patch, c * patch : (c + 1) * patch],
      p["kernel"],
      axes=3,
    )
    for r in range(rows)
    for c in range(columns)
  ]
  return np.stack(tokens) + p["bias"]


def sincos2d(rows, columns, width):
  """Position embeddings of a grid, entry by entry."""
  quarter = width // 4
  table = np.zeros((rows * columns, width))
  for r in range(rows):
    for c in range(columns):
      for i in range(quarter):
        omega = 1 / 10_000 ** (i / (quarter - 1))
        entry = table[r * columns + c]
        entry[i], entry[quarter + i] = np.sin(c * omega), np.cos(c * omega)
        entry[2 * quarter + i] = np.sin(r * omega)
        entry[3 * quarter + i] = np.cos(r * omega)
  return table


def vit(image, params, patch):
  """Logits and features; the architecture follows from the parameters."""
  p, encoder = params, params["Encoder"]
  x = _patches(image, p["embedding"], patch)
  if "posembed_input" not in encoder:
    grid = image.shape[0] // patch, image.shape[1] // patch
    x = x + sincos2d(*grid, x.shape[1])
  if "cls" in p:
    x = np.concatenate([p["cls"][0], x])
  if "posembed_input" in encoder:
    x = x + encoder["posembed_input"]["pos_embedding"][0]
  for i in range(sum("encoderblock" in name for name in encoder)):
    block = encoder[f"encoderblock_{i}"]
    y = _norm(x, block["LayerNorm_0"])
    x = x + _attend(y, y, block["SelfAttention"])
    x = x + _mlp(_norm(x, block["LayerNorm_1"]), block["Mlp"])
  features = pooled(x, p)
  return features @ p["head"]["kernel"] + p["head"]["bias"], features


def pooled(x, p):
  """Features of the tokens that the last block returns."""
  features = _pool(_norm(x, p["Encoder"]["encoder_norm"]), p)
  if "pre_logits" in p:
    layer = p["pre_logits"]
    features = np.tanh(features @ layer["kernel"] + layer["bias"])
  return features


def _pool(x, p):
  if "MapHead" in p:
    head = p["MapHead"]
    attention = head["MultiHeadDotProductAttention"]
    y = _attend(head["probe"][0], x, attention)
    return (y + _mlp(_norm(y, head["LayerNorm"]), head["Mlp"]))[0]
  return x[0] if "cls" in p else x.mean(axis=0)
