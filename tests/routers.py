"""The routers as parameters of tests: those beside the study's are slow."""

import pytest

from vmoe_study.nn.zoo import ROUTERS

STUDY = list(ROUTERS)[:7]
EVERY_ROUTER = [
  pytest.param(name, marks=() if name in STUDY else pytest.mark.slow)
  for name in ROUTERS
]
