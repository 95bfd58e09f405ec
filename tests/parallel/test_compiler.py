"""Asynchronous exchanges compile on every slice that is asked for them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

pytest.importorskip("libtpu")

from vmoe_study.parallel.compiler import compiler_options
from vmoe_study.parallel.mesh import AXES, MeshSpec, make_mesh
from vmoe_study.performance.target import open_target

pytestmark = pytest.mark.slow

INPUTS, OUTPUTS = jax.P(None, AXES), jax.P("expert", "replica")


@pytest.mark.parametrize(
  ("topology", "expert", "is_async"),
  [("v5e:4x4", 16, True), ("v5e:4x8", 32, False), ("v6e:4x8", 32, True)],
)
def test_two_exchanges_compile(topology, expert, is_async):
  devices = open_target(topology).devices
  mesh = make_mesh(MeshSpec(len(devices) // expert, expert), devices)

  def exchange(split, concat, in_specs, out_specs):
    function = functools.partial(
      jax.lax.all_to_all,
      axis_name="expert",
      split_axis=split,
      concat_axis=concat,
      tiled=True,
    )
    return jax.shard_map(
      function,
      mesh=mesh,
      in_specs=in_specs,
      out_specs=out_specs,
      check_vma=False,
    )

  send = exchange(0, 1, INPUTS, OUTPUTS)
  receive = exchange(1, 0, OUTPUTS, INPUTS)

  def experts(parts, kernel):
    inputs = [send(part) for part in parts]
    return [receive(jnp.tanh(x @ kernel)) for x in inputs]

  def placed(shape, spec):
    sharding = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

  part = placed((32, 128 * len(devices), 512), INPUTS)
  lowered = jax.jit(experts, compiler_options=compiler_options(mesh)).lower(
    [part, part], placed((512, 512), jax.P())
  )
  program = lowered.compile().as_text()
  assert ("all-to-all-start(" in program) == is_async


def gather(values, indices):
  return jnp.take_along_axis(values, indices, axis=2)


def scatter(values, indices):
  return jnp.zeros_like(values).at[indices].add(values)


@pytest.mark.parametrize(
  ("function", "values", "indices"),
  [(gather, (32, 128, 257), (32, 128, 2)), (scatter, (512,), (512,))],
)
@pytest.mark.parametrize("topology", ["v5p:2x2x1", "v6e:2x2"])
def test_programs_of_routers_can_be_read(topology, function, values, indices):
  """These chips have SparseCores."""
  devices = open_target(topology).devices
  mesh = make_mesh(MeshSpec(len(devices), 1), devices)

  def placed(shape, dtype):
    shape = (shape[0] * len(devices), *shape[1:])
    sharding = NamedSharding(mesh, jax.P(AXES))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  lowered = jax.jit(function, compiler_options=compiler_options(mesh)).lower(
    placed(values, jnp.float32), placed(indices, jnp.int32)
  )
  assert function.__name__ in lowered.compile().as_text()
