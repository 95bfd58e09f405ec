"""Fixtures of the routing tests."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked(monkeypatch):
  """Turns off the shape checks of the tests: users run without them."""
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
