"""The names of modules and parameters.

A parameter's path joins the names of the modules that hold it, as in
"head/kernel". Modules are named as in the public V-MoE code, so that its
checkpoints map by path. Code that finds, checks or changes parameters by name
takes the name from here. The parameters of a `VisionTransformer`, where N
counts blocks and i is 0 or 1:

    embedding/{kernel,bias}                               of patches
    cls                                                   if pool is "token"
    Encoder/posembed_input/pos_embedding                  if learned
    Encoder/encoderblock_N/LayerNorm_i/{scale,bias}
    Encoder/encoderblock_N/SelfAttention/...
    Encoder/encoderblock_N/Mlp/Dense_i/{kernel,bias}      of a dense block
    Encoder/encoderblock_N/Moe/Router/...                 of a routed block
    Encoder/encoderblock_N/Moe/Mlp/Dense_i/{kernel,bias}  likewise
    Encoder/encoder_norm/{scale,bias}
    MapHead/...                                           if pool is "map"
    pre_logits/{kernel,bias}                              if it has this layer
    head/{kernel,bias}

Experts, `Moe/Mlp`, have the arrays of `Mlp` with a leading axis E.
"""

import re

EMBEDDING = "embedding"
CLASS_TOKEN = "cls"
ENCODER = "Encoder"
ADD_POSITIONS = "posembed_input"
POSITION_EMBEDDING = "pos_embedding"
ATTENTION = "SelfAttention"
MLP = "Mlp"
MLP_INPUT = "Dense_0"
MLP_OUTPUT = "Dense_1"
MOE = "Moe"
ROUTER = "Router"
SLOT_EMBEDDING = "mu"  # Of a soft router.
MAP_HEAD = "MapHead"
PRE_LOGITS = "pre_logits"
HEAD = "head"

# The variable collection of router states, which are not parameters. A state
# has the path of its router.
ROUTER_STATE = "router_state"

POSITIONS = f"{ENCODER}/{ADD_POSITIONS}/{POSITION_EMBEDDING}"
EXPERTS = f"{MOE}/{MLP}"  # Within a block.
# For `re.search` in a path.
EXPERT_PATTERN = rf"(^|/){EXPERTS}/"
BLOCK_PATTERN = rf"^{ENCODER}/encoderblock_(\d+)/"


def block_name(index: int) -> str:
  """The name of an encoder block: "encoderblock_3"."""
  return f"encoderblock_{index}"


def in_moe(path: str) -> bool:
  """Whether the path is that of a parameter of a router or of experts."""
  return MOE in path.split("/")


def in_router(path: str) -> bool:
  """Whether the path is that of a parameter of a router."""
  return f"{MOE}/{ROUTER}/" in path


def in_experts(path: str) -> bool:
  """Whether the path is that of a parameter of experts (leading axis E)."""
  return re.search(EXPERT_PATTERN, path) is not None


def in_head(path: str) -> bool:
  """Whether the path is that of a parameter of the classification head."""
  return path.startswith(f"{HEAD}/")


def dense_path(path: str) -> str:
  """The path in a dense model of the parameter that experts have at `path`."""
  return path.replace(f"{EXPERTS}/", f"{MLP}/")
