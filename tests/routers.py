"""The routers as parameters of tests: those beside the study's are slow."""

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
EVERY_KIND = [
  *STUDY,
  *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_KINDS),
]
