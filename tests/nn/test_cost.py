"""FLOPs against XLA's count, parameters against those of dense models."""

import jax
import jax.numpy as jnp
import pytest

from vmoe_study.nn import cost
from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.vit import VisionTransformer, backbone_sizes

pytestmark = pytest.mark.slow

IMAGE = (64, 64, 3)
BATCH = 2
SIZES = {
  "num_classes": 100,
  "patch_size": 8,
  "width": 256,
  "depth": 2,
  "mlp_dim": 1024,
  "num_heads": 4,
}


def moe(router, **options):
  return MoeOptions(router, {"num_experts": 8, **options}, (1,), 1)


def xla_flops(function, *shapes):
  """Of the program as written, before XLA optimises."""
  return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def shapes_of(model, image_shape=IMAGE):
  images = jax.ShapeDtypeStruct((BATCH, *image_shape), jnp.float32)
  init = lambda x: model.init(jax.random.key(0), x)["params"]  # noqa: E731
  return jax.eval_shape(init, images), images


@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"pool": "token", "representation_size": 256},
    {"pool": "map"},
    {"moe": moe("softmax_expert_choice", capacity_factor=2.0)},
    {"moe": moe("softmax_token_choice", num_selected_experts=2)},
    {"moe": moe("soft", capacity_factor=8.0)},
  ],
  ids=["gap", "token", "map", "expert choice", "token choice", "soft"],
)
def test_forward_flops_are_xlas(fields):
  model = VisionTransformer(**SIZES, **fields)
  params, images = shapes_of(model)
  forward = lambda p, x: model.apply({"params": p}, x)[0]  # noqa: E731
  counted = xla_flops(forward, params, images)
  expected = BATCH * sum(cost.forward_flops(model, IMAGE).values())
  assert expected == pytest.approx(counted, rel=0.03)
  assert expected < counted  # XLA also counts what is no matrix product.


def test_training_flops_are_xlas():
  model = VisionTransformer(**SIZES)
  params, images = shapes_of(model)
  loss = lambda p, x: model.apply({"params": p}, x)[0].sum()  # noqa: E731
  counted = xla_flops(jax.grad(loss), params, images)
  expected = BATCH * cost.training_flops(model, IMAGE)
  assert expected == pytest.approx(counted, rel=0.03)


def counts(fields):
  sizes = backbone_sizes("B/16") | {"num_classes": 10, "pool": "token"}
  model = VisionTransformer(**sizes, **fields)
  shape = (224, 224, 3)
  params, _ = shapes_of(model, shape)
  return cost.parameter_counts(params, cost.routing(model, shape))


def test_a_token_that_meets_one_expert_meets_a_dense_model_and_routers():
  one = {"num_experts": 32, "num_selected_experts": 1, "capacity_factor": 1.5}
  total, active = counts({"moe": MoeOptions("softmax_token_choice", one)})
  dense, _ = counts({})
  expert = 2 * 768 * 3072 + 3072 + 768
  routers = 6 * 768 * 32
  assert active == dense + routers
  assert total == dense + routers + 6 * 31 * expert


@pytest.mark.parametrize(
  ("group", "options", "factor"),
  [
    (1, {"capacity_rounding": "round"}, 2 * 32 / 50),
    (1, {"capacity_rounding": "ceil", "capacity_multiple_of": 4}, 4 * 32 / 50),
    (8, {"num_selected_experts": 2}, 25 * 32 / 800),
  ],
)
def test_the_actual_capacity_factor(group, options, factor):
  """B/32 with a class token has 50 tokens: 1.5625 per expert at factor 1."""
  options = {"num_experts": 32, "capacity_factor": 1.0, **options}
  routed = MoeOptions("softmax_token_choice", options, group_images=group)
  sizes = backbone_sizes("B/32") | {"num_classes": 10, "pool": "token"}
  found = cost.routing(VisionTransformer(**sizes, moe=routed), (224, 224, 3))
  assert found.capacity_factor == pytest.approx(factor)
  assert f"actual capacity factor {factor:.4g}" in found.describe()


def test_expert_choice_counts_slots_per_token():
  options = {"num_experts": 32, "capacity_factor": 2.0}
  total, active = counts({"moe": MoeOptions("softmax_expert_choice", options)})
  experts = 6 * 32 * (2 * 768 * 3072 + 3072 + 768)
  slots = 32 * round(197 * 2 / 32) / 197
  assert active == total - experts + round(experts * slots / 32)


@pytest.mark.parametrize("pool", ["gap", "map"])
@pytest.mark.parametrize(
  "router, options",
  [
    ("softmax_expert_choice", {"capacity_factor": 2.0}),
    ("dropless_token_choice", {"num_selected_experts": 3}),
    ("soft", {}),
  ],
)
def test_a_dense_model_of_the_same_flops(router, options, pool):
  model = VisionTransformer(**SIZES, pool=pool, moe=moe(router, **options))
  size = cost.dense_mlp_dim(model, IMAGE)
  dense = model.clone(moe=None, mlp_dim=size)
  found, wanted = (
    sum(cost.forward_flops(m, IMAGE).values()) for m in (dense, model)
  )
  assert size > SIZES["mlp_dim"] and found == pytest.approx(wanted, rel=1e-3)


def test_dropless_experts_compute_k_rows_per_token():
  model = VisionTransformer(
    **SIZES, moe=moe("dropless_token_choice", num_selected_experts=3)
  )
  found = cost.routing(model, IMAGE)
  assert found.slots_per_token == found.experts_per_token == 3
