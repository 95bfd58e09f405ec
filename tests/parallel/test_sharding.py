"""The table of rules for parameters."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vmoe_study.parallel import sharding
from vmoe_study.parallel.mesh import MeshSpec, make_mesh

EXPERTS = "layer/experts/"
PARAMS = {
  "layer": {
    "experts": {"kernel": np.zeros((8, 4, 6))},
    "router": {"kernel": np.zeros((4, 8))},
  },
  "odd": np.zeros((3, 5)),
  "scalar": np.zeros(()),
}


def specs(spec, rules=None):
  """The partition spec of every parameter, by path."""
  rules = rules or sharding.parameter_rules(EXPERTS, spec.fsdp)
  found = sharding.tree_shardings(make_mesh(spec), rules, PARAMS, EXPERTS)
  flat = jax.tree_util.tree_leaves_with_path(found)
  return {sharding.path_name(path): s.spec for path, s in flat}


def test_experts_are_sharded_and_the_rest_is_replicated():
  found = specs(MeshSpec(2, 4))
  assert found.pop("layer/experts/kernel") == P("expert")
  assert set(found) == {"layer/router/kernel", "odd", "scalar"}
  assert set(found.values()) == {P()}


def test_fsdp_shards_the_largest_axis_that_divides():
  found = specs(MeshSpec(2, 4, fsdp=True))
  assert found["layer/router/kernel"] == P(None, ("replica", "expert"))
  assert found["odd"] == found["scalar"] == P()
  assert found["layer/experts/kernel"] == P("expert", None, ("replica",))


def test_fsdp_takes_several_axes_or_fewer_devices_where_it_must():
  mesh = make_mesh(MeshSpec(2, 4, fsdp=True))
  rules = sharding.parameter_rules(None, fsdp=True)
  params = {
    "two axes": np.zeros((4, 2, 3)),
    "experts alone": np.zeros((3, 12)),
    "replicas alone": np.zeros((3, 2)),
  }
  found = sharding.tree_shardings(mesh, rules, params)
  assert {name: s.spec for name, s in found.items()} == {
    "two axes": P(("expert",), ("replica",)),
    "experts alone": P(None, ("expert",)),
    "replicas alone": P(None, ("replica",)),
  }


def test_a_model_without_experts_has_one_rule():
  assert sharding.parameter_rules(None) == (("", P()),)
  assert sharding.parameter_rules(None, fsdp=True) == (
    ("", sharding.Fsdp(P())),
  )


def test_a_rule_without_parameters_is_an_error():
  rules = (("nothing", P()), *sharding.parameter_rules(EXPERTS))
  with pytest.raises(ValueError, match="nothing.*must match a parameter"):
    specs(MeshSpec(), rules)


def test_a_parameter_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match="parameter .*: must match a rule"):
    specs(MeshSpec(), sharding.parameter_rules(EXPERTS)[:1])


def test_an_expert_that_no_rule_shards_is_an_error():
  with pytest.raises(ValueError, match="expert parameter.*'expert'"):
    specs(MeshSpec(), sharding.parameter_rules(None))


def test_a_size_that_does_not_divide_is_an_error():
  rules = ((EXPERTS, P("expert")), ("odd", P("expert")), ("", P()))
  with pytest.raises(ValueError, match="size 3 must be divisible by 8"):
    specs(MeshSpec(1, 8), rules)
