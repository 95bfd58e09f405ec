"""ROUTERS.md shows the rows of `ROUTERS` as they are."""

import pathlib

from vmoe_study.nn.router_table import render
from vmoe_study.nn.zoo import ROUTERS

PAGE = pathlib.Path(__file__).parents[2] / "ROUTERS.md"


def test_the_page_shows_the_table():
  """If not: python -m vmoe_study.nn.router_table, between the markers."""
  _, table, _ = PAGE.read_text().split("<!-- routers -->\n")
  assert table == render() + "\n"


def test_every_router_is_described():
  for name, spec in ROUTERS.items():
    about = spec.about
    texts = about.scores, about.dispatch, about.combine, about.source
    assert all(texts), name
