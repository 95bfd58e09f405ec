"""Compiled for a TPU slice, experts compute while tokens travel."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

pytest.importorskip("libtpu")

from vmoe_study.nn.moe import Moe, MoeOptions
from vmoe_study.parallel.compiler import compiler_options
from vmoe_study.parallel.mesh import AXES, MeshSpec, make_mesh
from vmoe_study.performance.target import open_target
from vmoe_study.routing.exchange import Exchange


def test_one_part_travels_while_another_is_computed():
  mesh = make_mesh(MeshSpec(1, 4), open_target("v5e:2x2").devices)
  options = {"num_experts": 8, "plan_form": "dense"}
  layer = Moe(
    MoeOptions("softmax_expert_choice", options),
    mlp_dim=1024,
    dtype="bfloat16",
    exchange=Exchange(mesh, AXES),
  )

  def placed(x, *axes):
    sharding = NamedSharding(mesh, jax.P(*axes))
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

  x = placed(jax.ShapeDtypeStruct((256, 64, 256), jnp.bfloat16), AXES)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)["params"]
  params = {
    "Mlp": jax.tree.map(lambda p: placed(p, "expert"), shapes["Mlp"]),
    "Router": jax.tree.map(placed, shapes["Router"]),
  }
  function = jax.jit(
    lambda params, x: layer.apply({"params": params}, x)[0],
    compiler_options=compiler_options(mesh),
  )
  program = function.lower(params, x).compile().as_text()
  events = re.findall(
    r"%(\S+) = .* (all-to-all-start|all-to-all-done|fusion)\(([^)]*)(.*)",
    program,
  )
  travelling, products = set(), 0
  for name, kind, operands, attributes in events:
    if kind == "all-to-all-start":
      travelling.add(name)
    elif kind == "all-to-all-done":
      travelling.remove(operands.removeprefix("%"))
    elif travelling and re.search(r"Mlp.*dot_general", attributes):
      products += 1
  assert products >= 4
  assert program.count(" all-to-all-start(") == 8
