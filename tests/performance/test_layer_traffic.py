"""The bytes of a layer by part, and those of an ideal layer."""

import dataclasses

import pytest

from vmoe_study.performance import layer_traffic

PROGRAM = """
HloModule layer, is_scheduled=true, num_partitions=4

ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %near = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy(%x)
  %rows = (bf16[6,128]{1,0:T(8,128)(2,1)}, f32[8,4]{1,0:T(8,128)S(1)}) \
custom-call(%x, %near), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(step)/jvp(Moe)/shard_map/pallas_call"}
  %part = bf16[6,128]{1,0:T(8,128)(2,1)} get-tuple-element(%rows), index=0
  %sent = bf16[6,128]{1,0:T(8,128)(2,1)} all-to-all(%part), \
replica_groups={{0,1,2,3}}
  ROOT %y = bf16[8,128]{1,0:T(8,128)(2,1)} add(%sent, %near), \
metadata={op_name="jit(step)/jvp(Moe)/vmap(Mlp)/Dense_0/dot_general"}
}
"""
ARRAY = 8 * 128 * 2  # With the padding of 6 rows to 8.


def test_a_kernel_reads_and_writes_each_of_its_arrays_in_hbm_once():
  assert layer_traffic.by_part(PROGRAM) == {
    "experts": 2 * ARRAY,
    "router": 0,
    "dispatch and combine": 2 * ARRAY,  # One operand and a result.
    "exchange": 2 * ARRAY,
    "copies and others": ARRAY,
  }


def test_a_kernel_may_access_a_part_of_its_arrays():
  words = 'custom_call_target="tpu_custom_call", '
  stated = (8 * 128 + 8 * 128 + 6 * 128) * 2 + 8 * 4 * 4  # All arrays.
  for share in (0.25, 1, 2):
    cost = f'"cost_estimate":{{"bytes_accessed":"{int(share * stated)}"}}'
    config = f'backend_config={{"custom_call_config":{{{cost}}}}}, '
    found = layer_traffic.by_part(PROGRAM.replace(words, words + config))
    assert found["dispatch and combine"] == min(1, share) * 2 * ARRAY


def test_an_ideal_layer_of_b16():
  pytest.importorskip("libtpu")
  from vmoe_study import load_config
  from vmoe_study.performance.estimate import model_on
  from vmoe_study.performance.target import open_target

  arguments = "router=softmax_expert_choice,backbone=B/16,fewshot=none"
  config = load_config(f"configs/pretrain.py:{arguments}", ["mesh.expert=16"])
  shallow = {**config.model.fields, "depth": 2}  # One of the layers is enough.
  model = dataclasses.replace(config.model, fields=shallow)
  config = dataclasses.replace(config, model=model)
  model = model_on(open_target("v5e:4x4"), config, (224, 224, 3))
  slots, tokens = 256 * 32 * 6, 256 * 197  # On each device.
  assert layer_traffic.ideal(model) == {
    "experts": 2 * slots * (6 * 768 + 7 * 3072),
    "exchange": 2 * slots * 8 * 768,
    "tokens": 2 * tokens * 4 * 768,
    "kernels": 4 * 2 * 2 * 768 * 3072,
  }
