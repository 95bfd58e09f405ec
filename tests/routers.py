"""The routers as parameters of tests, most of which are slow."""

import pytest

from vmoe_study.nn.zoo import ROUTERS

STUDY = list(ROUTERS)[:7]
# Each has a plan, logits or a state that no router of the study has.
OTHER_KINDS = [
  "cosine_token_choice",
  "bias_adjusted_token_choice",
  "relu",
  "dropless_token_choice",
  "hash",
  "soft_uniform",
]
FAST = ("softmax_token_choice", "softmax_expert_choice", "soft")
EVERY_KIND = [
  pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
  for name in (*STUDY, *OTHER_KINDS)
]
