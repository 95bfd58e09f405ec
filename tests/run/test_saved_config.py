"""Configs of earlier versions mean what they did."""

import copy

import pytest

from configs import digits
from vmoe_study.config import parse
from vmoe_study.nn.zoo import ROUTERS, make_router
from vmoe_study.routing.affinity import SparseTransport
from vmoe_study.run.saved_config import upgrade

NAME = "sparsity_constrained_token_choice"


@pytest.fixture(scope="module")
def values():
  config = parse(digits.get_config(f"router={NAME},k=2").to_dict())
  return config.to_dict()


@pytest.mark.parametrize("fills", [False, True])
def test_its_token_choice_by_a_column_sparse_plan(values, fills):
  """Before version 0.3.0 it had the name that the authors' router has now."""
  old = copy.deepcopy(values)
  options = old["model"]["moe"]["options"]
  del options["renormalize"]
  options["fill_zero_scores"] = fills
  moe = parse(upgrade(old)).model.moe
  assert moe.router == "column_sparse_token_choice"
  router = make_router(moe.router, **moe.options)
  assert router.affinity == SparseTransport()
  assert router.choice.num_selected_experts == 2
  assert router.choice.fill_zero_scores == fills


def test_the_authors_router_keeps_its_name(values):
  assert upgrade(values) == values
  options = ROUTERS[NAME].default_options()
  assert options["fill_zero_scores"] and "renormalize" in options
