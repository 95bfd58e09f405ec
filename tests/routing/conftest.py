"""Fixtures of the routing tests."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked(monkeypatch):
  """Without the tests' own checks of shapes, as users run the code."""
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
