"""What a search varies, and the analytic model against arithmetic by hand."""

import dataclasses

import jax.numpy as jnp
import pytest

from vmoe_study.config import parse
from vmoe_study.nn.cost import training_flops
from vmoe_study.parallel.mesh import make_abstract_mesh
from vmoe_study.performance import analytic
from vmoe_study.performance.plan import _with_batches_that_fit, variants
from vmoe_study.run.experiment import Model


def config(**moe):
  return parse(
    {
      "name": "test",
      "model": {
        "fields": {
          "num_classes": 10,
          "patch_size": 8,
          "width": 32,
          "depth": 2,
          "mlp_dim": 64,
          "num_heads": 2,
        },
        "moe": {
          "router": "softmax_expert_choice",
          "options": {"num_experts": 12},
          "blocks": "last 1",
          **moe,
        },
      },
      "data": {"name": "x", "split": "train", "ops": "resize(32)"}
      | {"num_classes": 10},
      "train": {"batch_size": 16, "num_steps": 10},
    }
  )


def test_meshes_are_those_that_divide_devices_and_experts():
  found = [
    (c.mesh.replica, c.mesh.expert, c.mesh.fsdp) for c in variants(config(), 8)
  ]
  meshes = [(8, 1), (4, 2), (2, 4)]  # 12 experts cannot be shared by 8.
  expected = [(*m, fsdp) for m in meshes for fsdp in (False, True)]
  assert list(dict.fromkeys(found)) == expected
  # Experts stay within a slice.
  slices = {c.mesh.expert for c in variants(config(), 8, num_slices=4)}
  assert slices == {1, 2}


def test_all_ways_to_need_less_memory_are_varied():
  own, *others = variants(config(), 1)
  assert own.train == config().train
  ways = {
    (
      c.model.fields["remat"],
      c.train.accumulation,
      c.train.optimizer.moment_dtype,
      c.model.moe.options["plan_form"],
    )
    for c in (own, *others)
  }
  assert len(ways) == len(others) + 1 == 3 * 3 * 2 * 2


def traced(devices=1, expert=1, **fields):
  made = config()
  model = dataclasses.replace(
    made.model, fields={**made.model.fields, **fields}
  )
  mesh = dataclasses.replace(made.mesh, replica=-1, expert=expert)
  made = dataclasses.replace(made, model=model, mesh=mesh)
  mesh = make_abstract_mesh(made.mesh, devices)
  model = Model(made, (32, 32, 3), mesh)
  return model, analytic.trace_products(model)


def test_products_are_those_of_the_model():
  model, products = traced()
  flops = 16 * training_flops(model.module, model.image_shape)
  assert flops <= products.flops < 1.2 * flops
  assert products.saved_bytes < products.operand_bytes
  assert products.all_to_all_bytes == ()


@pytest.mark.slow
def test_computing_again_saves_memory_and_costs_time():
  none, dots, full = (
    traced(remat=remat)[1] for remat in ("none", "dots", "full")
  )
  assert none.saved_bytes > full.saved_bytes
  assert none.flops < full.flops < 1.4 * none.flops
  assert dots.flops < full.flops


def test_exchanges_are_those_of_the_tokens():
  model, products = traced(devices=4, expert=4)
  slots = 16 * 12 * round(16 / 12)  # Images, experts, slots of each.
  width = 32 * jnp.dtype(model.module.dtype).itemsize
  # In and out, forward and backward.
  assert products.all_to_all_bytes == (slots * width,) * 4


def test_fewer_batches_may_fit():
  from tests.cli.test_plan import UNFIT

  memory = {"batch": 10, "waiting batches": 40, "total": 95, "capacity": 80}
  step = dataclasses.replace(
    UNFIT, hbm_bytes=memory, step_seconds={"step": 1.0}, batches_ahead=4
  )
  found = _with_batches_that_fit(step)
  assert found.fits and found.batches_ahead == 2
  assert found.hbm_bytes["total"] == 75
  memory = {**memory, "capacity": 50}
  step = dataclasses.replace(step, hbm_bytes=memory)
  assert _with_batches_that_fit(step) == step
