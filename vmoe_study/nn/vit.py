"""Vision Transformers, dense or with MoE blocks.

Sources: arXiv:2010.11929 (dense), arXiv:2106.05974 (V-MoE). Modules have
the names in `nn.parameter_names`.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vmoe_study.nn import parameter_names as names
from vmoe_study.nn.attention import Attention
from vmoe_study.nn.checked import CheckedModule
from vmoe_study.nn.mlp import Mlp
from vmoe_study.nn.moe import Moe, MoeOptions
from vmoe_study.routing.balance import RoutingAux
from vmoe_study.routing.exchange import Exchange

SIZE_FIELDS = ("width", "depth", "mlp_dim", "num_heads", "patch_size")
# Ti and S: arXiv:2308.00951. S8 (there called S), B, L, H: arXiv:2106.05974.
VARIANTS = {
  "Ti": (192, 12, 768, 3),
  "S": (384, 12, 1536, 6),
  "S8": (512, 8, 2048, 8),
  "B": (768, 12, 3072, 12),
  "L": (1024, 24, 4096, 16),
  "H": (1280, 32, 5120, 16),
}


def backbone_sizes(name: str) -> dict[str, int]:
  """The sizes of a backbone.

  Args:
    name: variant and patch size, as in "B/16".

  Returns:
    The fields of `VisionTransformer` in `SIZE_FIELDS`.

  Raises:
    ValueError: for a name that is not VARIANT/PATCH.
  """
  match = re.fullmatch(r"(\w+)/([1-9]\d*)", name)
  if not match or match[1] not in VARIANTS:
    raise ValueError(
      f"backbone={name!r}: must be one of {list(VARIANTS)}, a slash and a "
      "patch size, as in 'B/16'."
    )
  return dict(
    zip(SIZE_FIELDS, (*VARIANTS[match[1]], int(match[2])), strict=True)
  )


def moe_blocks(rule: str | Sequence[int], depth: int) -> tuple[int, ...]:
  """Indices of the routed blocks, ascending.

  Args:
    rule: "every N" (blocks N-1, 2N-1, ...), "last N odd" (V-MoE), "last N"
      (Soft MoE), or block indices from 0, also as a string such as "1,3".
    depth: number of blocks.

  Raises:
    ValueError: if the rule is none of these, or the model lacks some of the
      blocks.
  """
  min_blocks = 1
  if not isinstance(rule, str):
    blocks = tuple(sorted(set(rule)))
  elif match := re.fullmatch(r"\(?(\d+(?:, *\d+)*),?\)?", rule):
    blocks = tuple(sorted({int(block) for block in match[1].split(",")}))
  elif match := re.fullmatch(r"every ([1-9]\d*)", rule):
    blocks = tuple(range(int(match[1]) - 1, depth, int(match[1])))
  elif match := re.fullmatch(r"last ([1-9]\d*)( odd)?", rule):
    candidates = range(1, depth, 2) if match[2] else range(depth)
    min_blocks = int(match[1])
    blocks = tuple(candidates[-min_blocks:])
  else:
    raise ValueError(
      f"moe.blocks={rule!r}: must be 'every N', 'last N odd', 'last N' or a "
      "list of block indices."
    )
  if len(blocks) < min_blocks or blocks[0] < 0 or blocks[-1] >= depth:
    raise ValueError(
      f"moe.blocks={rule!r}: selects blocks {list(blocks)}, must select "
      f"{min_blocks} or more from 0 to {depth - 1}. Change the rule."
    )
  return blocks


class VitOutputs(NamedTuple):
  """Outputs of a forward pass besides the logits.

  Attributes:
    features: the input of the classification head, float32.
    aux: losses and load of every routed block, by the block's name.
  """

  features: Float[Array, "B D"]
  aux: dict[str, RoutingAux]


class EncoderBlock(nn.Module):
  """Self-attention and an MLP or MoE layer, each with a residual connection.

  Attributes:
    mlp_dim: F, the hidden size of the MLP or of each expert.
    num_heads: attention heads; divides D.
    moe: options of the MoE layer, except `blocks`; None for an MLP.
    dropout_rate: after attention and inside the MLP or the experts.
    qk_norm: whether queries and keys are normalised.
    dtype: dtype of the computation; parameters and routers are float32. The
      residual connections have the dtype of the input.
    exchange: sends tokens to the devices of their experts.
  """

  mlp_dim: int
  num_heads: int
  moe: MoeOptions | None
  dropout_rate: float
  qk_norm: bool
  dtype: str
  exchange: Exchange

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], deterministic: bool
  ) -> tuple[Float[Array, "B L D"], dict[str, RoutingAux]]:
    y = nn.LayerNorm(dtype=self.dtype, name="LayerNorm_0")(x)
    attention = self.num_heads, self.dtype, self.qk_norm, self.exchange
    y = Attention(*attention, name=names.ATTENTION)(y)
    y = nn.Dropout(self.dropout_rate, deterministic=deterministic)(y)
    x = x + y.astype(x.dtype)

    dtype = self.dtype if self.moe is None else x.dtype  # Not rounded.
    y = nn.LayerNorm(dtype=dtype, name="LayerNorm_1")(x)
    mlp = self.mlp_dim, self.dropout_rate, self.dtype
    aux: dict[str, RoutingAux] = {}
    if self.moe is None:
      y = Mlp(*mlp, name=names.MLP)(y, deterministic)
    else:
      moe = Moe(self.moe, *mlp, self.exchange, name=names.MOE)
      y, aux[str(self.name)] = moe(y, deterministic)
    return x + y.astype(x.dtype), aux


class Encoder(nn.Module):
  """Position embeddings, blocks, and a final layer norm in float32.

  Attributes:
    depth: number of blocks.
    block: fields of every `EncoderBlock`, except `moe`.
    moe: routed blocks; None for a dense model.
    posemb: "learned" or "sincos2d".
    grid: rows and columns of patches, for "sincos2d".
    remat: what the backward pass recomputes, see `VisionTransformer`.
  """

  depth: int
  block: dict[str, Any]
  moe: MoeOptions | None
  posemb: str
  grid: tuple[int, int]
  remat: str

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L D"], deterministic: bool
  ) -> tuple[Float[Array, "B L D"], dict[str, RoutingAux]]:
    if self.posemb == "learned":
      x = AddPositions(name=names.ADD_POSITIONS)(x)
    else:
      positions = sincos2d(*self.grid, x.shape[-1])
      class_token = ((x.shape[1] - len(positions), 0), (0, 0))
      x = x + jnp.pad(positions, class_token)[None].astype(x.dtype)
    rate = self.block["dropout_rate"]
    x = nn.Dropout(rate, deterministic=deterministic)(x)

    blocks = () if self.moe is None else moe_blocks(self.moe.blocks, self.depth)
    block_class = _REMAT[self.remat](EncoderBlock)
    aux: dict[str, RoutingAux] = {}
    for i in range(self.depth):
      moe = self.moe if i in blocks else None
      block = block_class(moe=moe, name=names.block_name(i), **self.block)
      x, block_aux = block(x, deterministic)
      aux |= block_aux
    return nn.LayerNorm(dtype=jnp.float32, name="encoder_norm")(x), aux


def _remat(policy=None):
  return lambda block: nn.remat(block, static_argnums=(2,), policy=policy)


_REMAT = {
  "none": lambda block: block,
  "full": _remat(),
  "dots": _remat(jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
}


class AddPositions(nn.Module):
  """Adds a learned position embedding to every token."""

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    init = nn.initializers.normal(0.02)
    embedding = self.param(names.POSITION_EMBEDDING, init, (1, *x.shape[1:]))
    return x + embedding.astype(x.dtype)


def sincos2d(height: int, width: int, features: int) -> Float[Array, "L D"]:
  """Fixed position embeddings: sines and cosines of x, then of y.

  Source: arXiv:2104.02057.

  Args:
    height: rows of patches.
    width: columns of patches.
    features: D.

  Returns:
    Embeddings of L = height * width positions, float32.

  Raises:
    ValueError: if D is not a multiple of 4.
  """
  if features % 4:
    raise ValueError(
      f"width={features}: must be a multiple of 4 for posemb='sincos2d'. "
      "Change the width, or set posemb='learned'."
    )
  y, x = np.mgrid[:height, :width].reshape(2, -1, 1)
  omega = 10_000.0 ** -np.linspace(0, 1, features // 4)
  waves = [f(p * omega) for p in (x, y) for f in (np.sin, np.cos)]
  return jnp.asarray(np.concatenate(waves, axis=1), jnp.float32)


class MapHead(nn.Module):
  """Attention pooling: one learned query attends to all tokens; float32.

  Attributes:
    mlp_dim: F, the hidden size of the MLP after the attention.
    num_heads: attention heads; divides D.
    qk_norm: whether queries and keys are normalised.
  """

  mlp_dim: int
  num_heads: int
  qk_norm: bool

  @nn.compact
  def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B D"]:
    shape = 1, 1, x.shape[-1]
    probe = self.param("probe", nn.initializers.xavier_uniform(), shape)
    probe = jnp.tile(probe, (x.shape[0], 1, 1))
    attention = Attention(
      self.num_heads,
      qk_norm=self.qk_norm,
      name="MultiHeadDotProductAttention",
    )
    x = attention(x, queries=probe)
    y = nn.LayerNorm(dtype=jnp.float32, name="LayerNorm")(x)
    return (x + Mlp(self.mlp_dim, name=names.MLP)(y))[:, 0]


class VisionTransformer(CheckedModule):
  """A Vision Transformer, with or without routed blocks.

  Maps float32 images (B, H, W, channels) to float32 logits (B, classes) and
  `VitOutputs`.

  Attributes:
    num_classes: size of the head.
    patch_size: height and width of a patch, in pixels.
    width: D.
    depth: number of blocks.
    mlp_dim: F, the hidden size of MLPs and experts.
    num_heads: attention heads; divides the width.
    moe: routed blocks; None, or router "dense", for a dense model.
    pool: features are the mean over tokens ("gap"), a class token ("token"),
      or attention pooling ("map").
    posemb: "learned" or "sincos2d".
    representation_size: width of a tanh layer before the head; 0 for none.
    head_bias_init: initial value of the head's biases.
    qk_norm: whether queries and keys are normalised.
    dropout_rate: after position embeddings, attention and MLP layers.
    dtype: dtype of the blocks. Parameters, routers and all layers from the
      final norm to the head are float32. Unless told otherwise, accelerators
      multiply float32 numbers with fewer bits (TF32, bfloat16); router logits,
      transport plans and the head ask for full float32, while blocks, patches
      and attention pooling do not. Gradients of the blocks' kernels are rounded
      to `dtype` on every device and summed over devices in it.
    residual_dtype: dtype of the residual connections, from the patches to the
      final norm, and of the tokens that routers see; None for `dtype`.
    remat: what the backward pass recomputes: nothing ("none"), all but matrix
      products with parameters ("dots"), or whole blocks ("full").
    exchange: sends tokens to the devices of their experts.

  Raises:
    ValueError: for an unknown string, or when called with images that do not
      fit the sizes.

  Example:
    >>> import jax
    >>> from vmoe_study import MoeOptions, VisionTransformer
    >>> model = VisionTransformer(
    ...   num_classes=10, patch_size=4, width=16, depth=2, mlp_dim=32,
    ...   num_heads=2, moe=MoeOptions("soft", {"num_experts": 4}),
    ... )
    >>> images = jax.numpy.ones((2, 16, 16, 3))
    >>> (logits, outputs), params = jax.eval_shape(  # Computes shapes only.
    ...   model.init_with_output, jax.random.key(0), images
    ... )
    >>> logits.shape, outputs.features.shape
    ((2, 10), (2, 16))
    >>> outputs.aux["encoderblock_1"].tokens_per_expert.shape  # (G, E)
    (2, 4)
  """

  num_classes: int
  patch_size: int
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  moe: MoeOptions | None = None
  pool: Literal["gap", "token", "map"] = "gap"
  posemb: Literal["learned", "sincos2d"] = "learned"
  representation_size: int = 0
  head_bias_init: float = 0.0
  qk_norm: bool = False
  dropout_rate: float = 0.0
  dtype: Literal["float32", "bfloat16"] = "float32"
  residual_dtype: Literal["float32", "bfloat16"] | None = None
  remat: Literal["none", "dots", "full"] = "none"
  exchange: Exchange = Exchange()

  @nn.compact
  def __call__(
    self, images: Float[Array, "B H W channels"], deterministic: bool = True
  ) -> tuple[Float[Array, "B classes"], VitOutputs]:
    x, grid = self._patches(images)
    if self.pool == "token":
      zeros = nn.initializers.zeros
      token = self.param(names.CLASS_TOKEN, zeros, (1, 1, self.width))
      token = token.astype(x.dtype)
      x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
    x, aux = self._encoder(grid)(x, deterministic)
    features = self._features(x)
    logits = nn.Dense(
      self.num_classes,
      precision=jax.lax.Precision.HIGHEST,
      kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(self.head_bias_init),
      name=names.HEAD,
    )(features)
    return logits, VitOutputs(features, aux)

  def _patches(self, images: Array) -> tuple[Array, tuple[int, int]]:
    height, width = images.shape[1:3]
    patch = self.patch_size
    if height % patch or width % patch:
      raise ValueError(
        f"patch_size={patch}: must divide the image size {height} x {width}. "
        "Choose a divisor, or resize the images."
      )
    embed = nn.Conv(
      self.width,
      (patch, patch),
      strides=(patch, patch),
      padding="VALID",
      dtype=self.dtype,
      name=names.EMBEDDING,
    )
    x = embed(images).reshape(len(images), -1, self.width)
    x = x.astype(self.residual_dtype or self.dtype)
    return x, (height // patch, width // patch)

  def _encoder(self, grid: tuple[int, int]) -> nn.Module:
    if self.width % self.num_heads:
      raise ValueError(
        f"num_heads={self.num_heads}: must divide width={self.width}. Change "
        "one of them."
      )
    block = {
      "mlp_dim": self.mlp_dim,
      "num_heads": self.num_heads,
      "dropout_rate": self.dropout_rate,
      "qk_norm": self.qk_norm,
      "dtype": self.dtype,
      "exchange": self.exchange,
    }
    is_routed = self.moe is not None and self.moe.is_routed
    return Encoder(
      depth=self.depth,
      block=block,
      moe=self.moe if is_routed else None,
      posemb=self.posemb,
      grid=grid,
      remat=self.remat,
      name=names.ENCODER,
    )

  def _features(self, x: Array) -> Array:
    if self.pool == "map":
      sizes = self.mlp_dim, self.num_heads
      x = MapHead(*sizes, self.qk_norm, name=names.MAP_HEAD)(x)
    else:
      x = x[:, 0] if self.pool == "token" else x.mean(axis=1)
    if self.representation_size:
      layer = nn.Dense(
        self.representation_size,
        precision=jax.lax.Precision.HIGHEST,
        name=names.PRE_LOGITS,
      )
      x = jnp.tanh(layer(x))
    return x
