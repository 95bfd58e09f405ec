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
def schedule():
  return hlo.schedule(MODULE)


@pytest.fixture(scope="module")
def traffic(schedule):
  return hlo.traffic(schedule)


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
  # An all-reduce from HBM to HBM, an all-gather from the chip to HBM.
  done = (16 + 16) * 4 + 16 * 4
  scattered, moved = (16 + 4) * 4, (16 + 16) * 4
  expected = slice_done + fusions + loop + done + scattered + moved
  assert traffic.hbm_bytes == expected


def test_a_mesh_may_order_its_devices():
  text = MODULE.replace(
    "mesh['x'=2,'y'=4] {'y'}",
    "mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'y'}",
  )
  (found,) = [
    c.groups.tolist()
    for c in hlo.traffic(hlo.schedule(text)).collectives
    if c.kind == "reduce-scatter"
  ]
  assert found == [[0, 4], [1, 5], [2, 6], [3, 7]]


def test_unknown_groups_are_an_error():
  with pytest.raises(ValueError, match="notation"):
    hlo.schedule(MODULE.replace("{'x'}", "{'x':(1)2}"))


def test_what_starts_is_ended(schedule):
  starts = [e.starts for e in schedule if isinstance(e, hlo.Event) and e.starts]
  ends = [e.ends for e in schedule if isinstance(e, hlo.Event) and e.ends]
  assert starts == ends == ["chain 7", "reduced", "both"]
  (loop,) = [e for e in schedule if isinstance(e, hlo.Loop)]
  assert loop.count == 5 and loop.body[0].collective.kind == "all-to-all"


# As the TPU compiler writes an asynchronous all-to-all, in either notation.
ASYNCHRONOUS = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%wrapped (p: bf16[4,40]) -> bf16[4,40] {
  %p = bf16[4,40]{1,0} parameter(0)
  ROOT %moved = bf16[4,40]{1,0} all-to-all(%p), channel_id=1, \
replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (p: bf16[4,40]) -> bf16[4,40] {
  %p = bf16[4,40]{1,0:T(4,128)(2,1)} parameter(0)
  %a = ((bf16[4,40]{1,0}), bf16[4,40]{1,0}, u32[]) async-start(%p), \
calls=%wrapped
  %b = ((bf16[4,40]{1,0}), bf16[4,40]{1,0}, u32[]) all-to-all-start(%p), \
channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}
  %got = bf16[4,40]{1,0} async-done(%a)
  ROOT %too = bf16[4,40]{1,0} all-to-all-done(%b)
}
"""


def test_an_asynchronous_exchange_counts_once():
  schedule = hlo.schedule(ASYNCHRONOUS)
  totals = hlo.summary(hlo.traffic(schedule).collectives)
  assert totals == {"all-to-all": {"count": 2, "bytes": 2 * 4 * 40 * 2}}
  assert [e.starts or e.ends for e in schedule] == ["a", "b", "a", "b"]


# As the TPU compiler writes an all-reduce of two slices with four chips each.
BETWEEN_SLICES = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

ENTRY %main (p: f32[16]) -> f32[16] {
  %p = f32[16]{0} parameter(0)
  %t = token[] after-all()
  %send = (f32[16]{0}, u32[], token[]) send(%p, %t), channel_id=3, \
is_host_transfer=true, frontend_attributes={\
_xla_host_transfer_rendezvous="all-reduce.8_0",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[16]{0}, u32[], token[]) recv(%t), channel_id=2, \
is_host_transfer=true, frontend_attributes={\
_xla_host_transfer_rendezvous="all-reduce.8_0"}
  %sent = token[] send-done(%send), channel_id=3, is_host_transfer=true
  %got = (f32[16]{0}, token[]) recv-done(%recv), channel_id=2
  ROOT %sum = f32[16]{0} get-tuple-element(%got), index=0
}
"""


def test_slices_meet_between_send_and_receive():
  start, end = hlo.schedule(BETWEEN_SLICES)
  assert start.starts == end.ends == "all-reduce.8_0"
  assert (start.hbm_bytes, end.hbm_bytes) == (16 * 4, 16 * 4)
  assert (start.collective.kind, start.collective.bytes) == ("all-reduce", 64)
  pairs = [[0, 4], [1, 5], [2, 6], [3, 7]]
  assert start.collective.groups.tolist() == pairs


def test_arrays_are_padded_to_their_tiles():
  assert hlo.argument_bytes(ASYNCHRONOUS) == [4 * 128 * 2]
  text = "HloModule m\n\nENTRY %main (p: f32[2]) -> f32[2] {\n"
  for shape, size in {
    "f32[5,3]{1,0:T(8,128)}": 8 * 128 * 4,
    "f32[5,3]{0,1:T(8,128)}": 8 * 128 * 4,
    "f32[16,6,130]{2,0,1:T(8,128)}": 6 * 16 * 256 * 4,
    "bf16[16,6,130]{2,1,0:T(8,128)(2,1)}": 16 * 8 * 256 * 2,
    "u8[7,224,224,3]{0,3,2,1:T(8,128)(4,1)}": 224 * 224 * 8 * 128,
    "f32[100]{0:T(256)}": 256 * 4,
    "f32[100]{0:T(8,128)}": 128 * 4,
    "f32[5,3]{1,0}": 15 * 4,
    "f32[]": 4,
  }.items():
    line = f"  %p = {shape} parameter(0)\n}}\n"
    assert hlo.argument_bytes(text + line) == [size], shape


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
  found = hlo.traffic(hlo.schedule(step.lower(x).compile().as_text()))
  totals = hlo.summary(found.collectives)
  local = 64 * 16 * 4 / 8
  assert totals["all-to-all"] == {"count": 3, "bytes": 3 * local}
  assert totals["all-reduce"]["bytes"] == 4
  exchange = next(c for c in found.collectives if c.kind == "all-to-all")
  np.testing.assert_array_equal(exchange.groups, [[0, 1, 2, 3], [4, 5, 6, 7]])
