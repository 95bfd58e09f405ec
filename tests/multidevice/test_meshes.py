"""The same training on every mesh, and nothing sent that need not be."""

import functools
import re

import jax
import numpy as np
import pytest

from vmoe_study import sharding
from vmoe_study.config import parse
from vmoe_study.experiment import Model, Training

ROUTERS = (
  "softmax_token_choice",
  "sinkhorn_token_choice",
  "softmax_expert_choice",
  "sinkhorn_expert_choice",
  "sparsity_constrained_expert_choice",
  "soft",
  "dense",
)
MESHES = ((1, 1), (8, 1), (2, 4), (1, 8))
BATCH, STEPS = 32, 20


def config(router, replica, expert, **changes):
  experts = {} if router == "dense" else {"num_experts": 8}
  experts |= changes.get("options", {})
  if router == "softmax_token_choice":
    experts |= {"importance_loss_weight": 0.005, "load_loss_weight": 0.005}
  data = {"name": "digits", "split": "train", "num_classes": 10}
  data["ops"] = "value_range(-1, 1)"
  return parse(
    {
      "name": "test",
      "model": {
        "fields": {
          "num_classes": 10,
          "patch_size": 2,
          "width": 16,
          "depth": 2,
          "mlp_dim": 32,
          "num_heads": 2,
          **changes.get("fields", {}),
        },
        "moe": {"router": router, "options": experts, "group_images": 2},
      },
      "data": data,
      "train": {
        "batch_size": BATCH,
        "num_steps": STEPS,
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "schedule": {"name": "constant", "peak": 0.05},
        "mixup": 0.5,
        **changes.get("train", {}),
      },
      "mesh": {
        "replica": replica,
        "expert": expert,
        "fsdp": changes.get("fsdp", False),
      },
    }
  )


def batch():
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 10, BATCH)
  images = rng.normal(size=(BATCH, 8, 8, 1)) + labels[:, None, None, None] / 5
  return {
    "image": images.astype(np.float32),
    "label": np.eye(10, dtype=np.float32)[labels],
  }


def with_head(state):
  """A head that is not zero, so that every parameter has a gradient."""
  head = state.params["head"]
  rng = np.random.default_rng(1)
  kernel = rng.normal(size=head["kernel"].shape).astype(np.float32)
  kernel = jax.device_put(kernel, head["kernel"].sharding)
  params = {**state.params, "head": {**head, "kernel": kernel}}
  return state.replace(params=params)


@functools.cache
def run(router, replica, expert, steps=STEPS, **changes):
  """First loss and gradients, parameters after the run, compiled step."""
  made = config(router, replica, expert, **changes)
  devices = jax.devices()[: replica * expert]
  mesh = sharding.make_mesh(made.mesh, devices)
  model = Model(made, (8, 8, 1), mesh)
  training = Training(model, num_examples=1000)
  images = jax.device_put(batch(), sharding.by_batch(mesh))
  state = with_head(training.init())
  step = training.step.lower(state, images).compile()
  losses = []
  for number in range(steps):
    state, metrics = step(state, images)
    losses.append(metrics["loss"])
    if number == 0:
      # The momentum of plain SGD after one step is the gradient.
      gradients = jax.device_get(state.opt_state[0].trace)
  return {
    "losses": np.stack(jax.device_get(losses)),
    "gradients": gradients,
    "params": state.params,
    "hlo": step.as_text(),
  }


def assert_close(found, expected, rtol):
  """Relative to the largest entry of each array.

  The gradient of a key's bias is zero but for rounding: attention does not
  change if every key moves alike. It is held against the largest of all.
  """
  found, expected = jax.device_get((found, expected))
  largest = max(np.abs(x).max() for x in jax.tree.leaves(expected))

  def check(path, a, b):
    is_key_bias = [entry.key for entry in path[-2:]] == ["key", "bias"]
    scale = largest if is_key_bias else np.abs(b).max()
    error = np.abs(a - b).max() / scale
    assert error <= rtol, f"{jax.tree_util.keystr(path)}: {error}"

  jax.tree_util.tree_map_with_path(check, found, expected)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("mesh", MESHES[1:])
def test_training_does_not_depend_on_the_mesh(router, mesh):
  expected, found = run(router, 1, 1), run(router, *mesh)
  np.testing.assert_allclose(found["losses"][0], expected["losses"][0], 1e-5)
  assert_close(found["gradients"], expected["gradients"], 1e-5)
  np.testing.assert_allclose(found["losses"], expected["losses"], 1e-4)
  assert_close(found["params"], expected["params"], 1e-4)
  assert expected["losses"][-1] < expected["losses"][0]


@pytest.mark.parametrize("router", ROUTERS)
def test_one_all_to_all_each_way_and_no_all_gather(router):
  hlo = run(router, 2, 4)["hlo"]
  sent = len(re.findall(r" all-to-all(?:-start)?\(", hlo))
  assert sent == (0 if router == "dense" else 4)  # 2 forward, 2 backward.
  assert not re.findall(r" all-gather(?:-start)?\(", hlo)


def test_experts_share_memory_out():
  for expert in (1, 4, 8):
    params = run("softmax_expert_choice", 8 // expert, expert)["params"]
    kernel = params["Encoder"]["encoderblock_1"]["Moe"]["Mlp"]["Dense_0"][
      "kernel"
    ]
    held = {shard.data.nbytes for shard in kernel.addressable_shards}
    assert held == {kernel.nbytes // expert}


def test_fsdp_trains_the_same_and_shares_parameters_out():
  made = config("softmax_expert_choice", 2, 4, fsdp=True)
  model = Model(made, (8, 8, 1))
  training = Training(model, num_examples=1000)
  state = with_head(training.init())
  images = jax.device_put(batch(), sharding.by_batch(model.mesh))
  for _ in range(3):
    state, metrics = training.step(state, images)
  expected = run("softmax_expert_choice", 1, 1)["losses"]
  np.testing.assert_allclose(metrics["loss"], expected[2], 1e-4)
  for tree in (state.params, state.opt_state[0].trace):
    kernel = tree["Encoder"]["encoderblock_0"]["Mlp"]["Dense_0"]["kernel"]
    assert kernel.addressable_shards[0].data.nbytes == kernel.nbytes // 8


@functools.cache
def two_losses(accumulation=1, remat="none"):
  made = config(
    "sinkhorn_token_choice",
    2,
    4,
    options={"noise_std": 0.0},  # Parts of a batch draw noise of their own.
    train={"accumulation": accumulation},
    fields={"remat": remat},
  )
  model = Model(made, (8, 8, 1))
  training = Training(model, num_examples=1000)
  images = jax.device_put(batch(), sharding.by_batch(model.mesh))
  state = with_head(training.init())
  losses = []
  for _ in range(2):
    state, metrics = training.step(state, images)
    losses.append(float(metrics["loss"]))
  return losses


@pytest.mark.parametrize(
  "changes",
  [{"accumulation": 2}, {"remat": "full"}, {"remat": "dots"}],
  ids=str,
)
def test_other_ways_to_compute_the_same_step(changes):
  np.testing.assert_allclose(two_losses(**changes), two_losses(), 1e-5)


def test_bfloat16_trains_with_float32_parameters():
  made = config(
    "softmax_expert_choice",
    2,
    4,
    fields={"dtype": "bfloat16"},
    train={"optimizer": {"name": "adam", "moment_dtype": "bfloat16"}},
  )
  model = Model(made, (8, 8, 1))
  training = Training(model, num_examples=1000)
  images = jax.device_put(batch(), sharding.by_batch(model.mesh))
  state = with_head(training.init())
  state, first = training.step(state, images)
  state, second = training.step(state, images)
  expected = run("softmax_expert_choice", 1, 1)["losses"][0]
  np.testing.assert_allclose(first["loss"], expected, 2e-2)
  assert np.isfinite(second["loss"])
  assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
  moments = {x.dtype.name for x in jax.tree.leaves(state.opt_state[0].mu)}
  assert moments == {"bfloat16"}
