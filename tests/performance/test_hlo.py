"""Reading HLO: a written module with known traffic, and a compiled one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

from vmoe_study.performance import hlo

# In the manner of the TPU compiler: S(1) is memory on the chip.
MODULE = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%piece (p: bf16[8,4]) -> bf16[64,4] {
  %p = bf16[8,4]{1,0} parameter(0)
  ROOT %gathered = bf16[64,4]{1,0} all-gather(%p), channel_id=3, \
replica_groups=mesh['x'=8] {'x'}, dimensions={0}, \
frontend_attributes={chain_id="7"}
}

%body (carry: (s32[], f32[16])) -> (s32[], f32[16]) {
  %carry = (s32[], f32[16]{0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  %x = f32[16]{0} get-tuple-element(%carry), index=1
  %y = f32[16]{0} all-to-all(%x), channel_id=1, \
replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  ROOT %out = (s32[], f32[16]{0}) tuple(%i, %y)
}

%condition (carry: (s32[], f32[16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %carry = (s32[], f32[16]{0}) parameter(0)
  %i = s32[] get-tuple-element(%carry), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (p: bf16[8,4], q: f32[16], r: f32[32]) -> f32[16] {
  %p = bf16[8,4]{1,0} parameter(0)
  %q = f32[16]{0} parameter(1)
  %r = f32[32]{0:T(128)} parameter(2)
  %slice-start = (f32[32]{0}, f32[8]{0:S(1)}) slice-start(%r), slice={[0:8]}
  %slice-done = f32[8]{0:S(1)} slice-done(%slice-start)
  %one = bf16[64,4]{1,0:S(1)} fusion(%p), kind=kCustom, calls=%piece
  %two = bf16[64,4]{1,0:S(1)} fusion(%p), kind=kCustom, calls=%piece
  %zero = s32[] constant(0)
  %start = (s32[], f32[16]{0}) tuple(%zero, %q)
  %loop = (s32[], f32[16]{0}) while(%start), condition=%condition, body=%body
  %z = f32[16]{0} get-tuple-element(%loop), index=1
  %reduced = f32[16]{0} all-reduce-start(%z), channel_id=2, \
replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add
  %sum = f32[16]{0} all-reduce-done(%reduced)
  %both = (f32[2]{0}, f32[16]{0}) all-gather-start(%slice-done), \
replica_groups=mesh['x'=2,'y'=4] {'x'}, dimensions={0}
  %got = f32[16]{0} all-gather-done(%both)
  %scattered = f32[4]{0} reduce-scatter(%got), \
replica_groups=mesh['x'=2,'y'=4] {'y'}, to_apply=%add
  ROOT %moved = f32[16]{0} collective-permute(%sum), \
source_target_pairs={{0,1},{1,0}}
}
"""


@pytest.fixture(scope="module")
def traffic():
  return hlo.traffic(MODULE)


def test_loops_chains_and_asynchronous_pairs_count_as_they_run(traffic):
  assert hlo.summary(traffic.collectives) == {
    "all-gather": {"count": 2, "bytes": 64 * 4 * 2 + 16 * 4},
    "all-to-all": {"count": 5, "bytes": 5 * 16 * 4},
    "all-reduce": {"count": 1, "bytes": 16 * 4},
    "reduce-scatter": {"count": 1, "bytes": 4 * 4 * 4},
    "collective-permute": {"count": 1, "bytes": 16 * 4},
  }


def test_groups_in_every_notation(traffic):
  groups = [c.groups.tolist() for c in traffic.collectives]
  rows = [[0, 1, 2, 3], [4, 5, 6, 7]]
  columns = [[0, 4], [1, 5], [2, 6], [3, 7]]
  assert groups == [
    [list(range(8))],
    rows,
    columns,
    columns,
    rows,
    [[0, 1], [1, 0]],
  ]


def test_hbm_bytes_leave_out_what_stays_on_the_chip(traffic):
  slice_done, fusions = 8 * 4, 2 * 8 * 4 * 2
  loop = 5 * (16 + 16) * 4
  done = 16 * 4 + 16 * 4
  scattered, moved = (16 + 4) * 4, (16 + 16) * 4
  expected = slice_done + fusions + loop + done + scattered + moved
  assert traffic.hbm_bytes == expected


def test_unknown_groups_are_an_error():
  with pytest.raises(ValueError, match="notation"):
    hlo.traffic(MODULE.replace("{'x'}", "{'x':(1)2}"))


def test_a_compiled_exchange():
  mesh = jax.make_mesh((2, 4), ("r", "e"), axis_types=(AxisType.Auto,) * 2)
  sharding = NamedSharding(mesh, jax.P(("r", "e")))

  @jax.jit
  def step(x):
    def swap(_, y):
      return jax.lax.all_to_all(y, "e", 0, 0, tiled=True)

    spec = jax.P(("r", "e"))
    loop = lambda y: jax.lax.fori_loop(0, 3, swap, y)  # noqa: E731
    y = jax.shard_map(loop, mesh=mesh, in_specs=spec, out_specs=spec)(x)
    return jnp.sum(y)

  x = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=sharding)
  found = hlo.traffic(step.lower(x).compile().as_text())
  totals = hlo.summary(found.collectives)
  local = 64 * 16 * 4 / 8
  assert totals["all-to-all"] == {"count": 3, "bytes": 3 * local}
  assert totals["all-reduce"]["bytes"] == 4
  exchange = next(c for c in found.collectives if c.kind == "all-to-all")
  np.testing.assert_array_equal(exchange.groups, [[0, 1, 2, 3], [4, 5, 6, 7]])
