"""The MLP of a Transformer block; each expert is also such an MLP."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from vmoe_study.nn import parameter_names as names


class Mlp(nn.Module):
  """Two linear layers with a GELU between them.

  Attributes:
    mlp_dim: F, the hidden size.
    dropout_rate: dropout after each layer; needs the RNG stream "dropout".
    dtype: dtype of the computation and the result; parameters are float32.
  """

  mlp_dim: int
  dropout_rate: float = 0.0
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, x: Float[Array, "... D"], deterministic: bool = True
  ) -> Float[Array, "... D"]:
    width = x.shape[-1]
    dense = functools.partial(
      nn.Dense,
      kernel_init=nn.initializers.xavier_uniform(),
      bias_init=nn.initializers.normal(1e-6),
      dtype=self.dtype,
    )
    drop = nn.Dropout(self.dropout_rate, deterministic=deterministic)
    x = dense(self.mlp_dim, name=names.MLP_INPUT)(x)
    x = drop(jax.nn.gelu(x))
    x = dense(width, name=names.MLP_OUTPUT)(x)
    return drop(x)


def apply_mlp(
  params: Mapping[str, Any], x: Array, dense: Callable[[Array, Any], Array]
) -> Array:
  """Applies an `Mlp` without dropout, with a custom dense layer.

  Args:
    params: parameters of one MLP, or of many stacked in one array.
    x: rows of tokens.
    dense: maps (rows, parameters of a layer) to rows.
  """
  x = jax.nn.gelu(dense(x, params[names.MLP_INPUT]))
  return dense(x, params[names.MLP_OUTPUT])
