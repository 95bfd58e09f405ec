"""Mesh sizes and the table of parameter rules."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vmoe_study.parallel import sharding
from vmoe_study.parallel.sharding import MeshSpec

PARAMS = {
  "Encoder": {
    "encoderblock_1": {
      "Moe": {
        "Mlp": {"Dense_0": {"kernel": np.zeros((8, 4, 6))}},
        "Router": {"dense": {"kernel": np.zeros((4, 8))}},
      }
    },
    "odd": np.zeros((3, 5)),
    "scalar": np.zeros(()),
  }
}


@pytest.mark.parametrize(
  ("spec", "shape"),
  [
    (MeshSpec(), (8, 1)),
    (MeshSpec(2, -1), (2, 4)),
    (MeshSpec(-1, 8), (1, 8)),
    (MeshSpec(4, 2), (4, 2)),
  ],
)
def test_mesh_sizes(spec, shape):
  assert sharding.make_mesh(spec).devices.shape == shape


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ((3, -1), "8 devices"),
    ((2, 2), "8 devices"),
    ((16, -1), "8 devices"),
    ((0, 1), "mesh.replica=0"),
    ((-1, -1), "only one"),
  ],
)
def test_mesh_sizes_that_do_not_fit(sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(MeshSpec(*sizes))


def specs(spec, rules=None):
  mesh = sharding.make_mesh(spec)
  rules = rules or sharding.parameter_rules(spec, has_experts=True)
  found = sharding.tree_shardings(mesh, rules, PARAMS)
  flat, _ = jax.tree_util.tree_flatten_with_path(found)
  return {sharding.path_name(path): s.spec for path, s in flat}


def test_experts_are_sharded_and_the_rest_is_replicated():
  found = specs(MeshSpec(2, 4))
  expert = "Encoder/encoderblock_1/Moe/Mlp/Dense_0/kernel"
  assert found.pop(expert) == P("expert")
  assert set(found.values()) == {P()}


def test_fsdp_shards_the_largest_axis_that_divides():
  found = specs(MeshSpec(2, 4, fsdp=True))
  router = "Encoder/encoderblock_1/Moe/Router/dense/kernel"
  assert found[router] == P(None, ("replica", "expert"))
  assert found["Encoder/odd"] == found["Encoder/scalar"] == P()


def test_a_rule_without_parameters_is_an_error():
  rules = ((r"nothing", P()), *sharding.parameter_rules(MeshSpec(), True))
  with pytest.raises(ValueError, match="nothing.*matches no parameter"):
    specs(MeshSpec(), rules)


def test_a_parameter_without_a_rule_is_an_error():
  with pytest.raises(ValueError, match="No sharding rule matches"):
    specs(MeshSpec(), (sharding.EXPERT_RULE,))


def test_an_expert_that_no_rule_shards_is_an_error():
  with pytest.raises(ValueError, match="Expert parameter.*'expert'"):
    specs(MeshSpec(), (sharding.REPLICATED_RULE,))


def test_a_size_that_does_not_divide_is_an_error():
  rules = (sharding.EXPERT_RULE, ("odd", P("expert")), ("", P()))
  with pytest.raises(ValueError, match="size 3 cannot be sharded 8 ways"):
    specs(MeshSpec(1, 8), rules)
