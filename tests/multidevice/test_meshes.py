"""The same training on every mesh, and nothing sent that need not be."""

import functools

import jax
import numpy as np
import pytest

from vmoe_study.parallel import sharding
from vmoe_study.parallel.mesh import make_mesh
from vmoe_study.run.experiment import Model, Training

from .tiny import (
  DEEP,
  ROUTERS,
  assert_only_exchanges,
  batch,
  config,
  num_steps,
)

BOTH_AXES = (2, 4)
CASES = [(router, BOTH_AXES) for router in ROUTERS]
CASES += [
  ("softmax_token_choice", (8, 1)),
  ("softmax_token_choice", (1, 8)),
  ("softmax_expert_choice", (1, 8)),
  ("soft", (1, 8)),
]


def with_head(state):
  """A head that is not zero, so that every parameter has a gradient."""
  head = state.params["head"]
  rng = np.random.default_rng(1)
  kernel = rng.normal(size=head["kernel"].shape).astype(np.float32)
  kernel = jax.device_put(kernel, head["kernel"].sharding)
  params = {**state.params, "head": {**head, "kernel": kernel}}
  return state.replace(params=params)


@functools.cache
def first_state(router):
  """The first state of a run on one device, in host memory."""
  made = config(router, 1, 1)
  model = Model(made, (8, 8, 1), make_mesh(made.mesh, jax.devices()[:1]))
  state = with_head(Training(model, num_examples=1000).init())
  return jax.device_get((state.params, state.opt_state, state.router_state))


def train_state(training):
  """The first state on the devices of a run, compiled once per router."""
  like = training.state_template()
  placed = jax.tree.map(
    lambda x, like: jax.device_put(x, like.sharding),
    first_state(training.model.config.model.moe.router),
    (like.params, like.opt_state, like.router_state),
  )
  return training.state_at(0, *placed)


@functools.cache
def run(router, replica, expert, fsdp=False):
  """Losses, first gradients, last state and program of a run on a mesh."""
  made = config(router, replica, expert, fsdp=fsdp)
  devices = jax.devices()[: replica * expert]
  mesh = make_mesh(made.mesh, devices)
  training = Training(Model(made, (8, 8, 1), mesh), num_examples=1000)
  batches = [
    jax.device_put(batch(number), sharding.batch_sharding(mesh))
    for number in range(num_steps(router))
  ]
  state = train_state(training)
  step = training.step.lower(state, batches[0]).compile()
  losses = []
  for number, images in enumerate(batches):
    state, metrics = step(state, images)
    losses.append(metrics["loss"])
    if number == 0:
      # The momentum of plain SGD after one step is the gradient.
      gradients = jax.device_get(state.opt_state[0].trace)
  return {
    "losses": np.stack(jax.device_get(losses)),
    "gradients": gradients,
    "state": state,
    "hlo": step.as_text(),
  }


def assert_close(found, expected, rtol):
  """Relative to the largest entry of each array.

  The gradient of a key's bias is zero but for rounding: attention does not
  change if every key moves alike. It is held against the largest of all.
  """
  found, expected = jax.device_get((found, expected))
  largest = max((np.abs(x).max() for x in jax.tree.leaves(expected)), default=0)

  def check(path, a, b):
    is_key_bias = [entry.key for entry in path[-2:]] == ["key", "bias"]
    scale = largest if is_key_bias else np.abs(b).max()
    scale = max(scale, 1e-30)  # Of a state that has not moved.
    error = np.abs(a - b).max() / scale
    assert error <= rtol, f"{jax.tree_util.keystr(path)}: {error}"

  jax.tree_util.tree_map_with_path(check, found, expected)


def assert_same_training(found, expected):
  """All losses, the first gradients and the last parameters, within 1e-5."""
  np.testing.assert_allclose(found["losses"], expected["losses"], 1e-5)
  assert_close(found["gradients"], expected["gradients"], 1e-5)
  for tree in ("params", "router_state"):
    assert_close(
      getattr(found["state"], tree), getattr(expected["state"], tree), 1e-5
    )


@pytest.mark.parametrize(("router", "mesh"), CASES)
def test_training_does_not_depend_on_the_mesh(router, mesh):
  expected = run(router, 1, 1)
  assert_same_training(run(router, *mesh), expected)
  if router in DEEP:
    assert expected["losses"][-1] < 0.8 * expected["losses"][0]


def test_initial_weights_do_not_depend_on_the_mesh():
  found = []
  for mesh in ((1, 1), BOTH_AXES):
    made = config("relu", *mesh)
    devices = jax.devices()[: mesh[0] * mesh[1]]
    model = Model(made, (8, 8, 1), make_mesh(made.mesh, devices))
    found.append(jax.device_get((model.init(), model.init_router_state())))
  assert_close(*found, 1e-6)


@pytest.mark.parametrize("router", ROUTERS)
def test_one_all_to_all_each_way_and_no_all_gather(router):
  assert_only_exchanges(run(router, *BOTH_AXES)["hlo"], router)


def test_experts_share_memory_out():
  for expert in (1, 4, 8):
    params = run("softmax_token_choice", 8 // expert, expert)["state"].params
    kernel = params["Encoder"]["encoderblock_1"]["Moe"]["Mlp"]["Dense_0"][
      "kernel"
    ]
    held = {shard.data.nbytes for shard in kernel.addressable_shards}
    assert held == {kernel.nbytes // expert}


def test_fsdp_trains_the_same_and_shares_parameters_out():
  found = run("softmax_expert_choice", 2, 4, fsdp=True)
  assert_same_training(found, run("softmax_expert_choice", 1, 1))
  state = found["state"]
  for tree in (state.params, state.opt_state[0].trace):
    kernel = tree["embedding"]["kernel"]
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
  images = jax.device_put(batch(), sharding.batch_sharding(model.mesh))
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
  images = jax.device_put(batch(), sharding.batch_sharding(model.mesh))
  state = with_head(training.init())
  state, first = training.step(state, images)
  state, second = training.step(state, images)
  expected = run("softmax_expert_choice", 1, 1)["losses"][0]
  np.testing.assert_allclose(first["loss"], expected, 2e-2)
  assert np.isfinite(second["loss"])
  assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"float32"}
  moments = {x.dtype.name for x in jax.tree.leaves(state.opt_state[0].mu)}
  assert moments == {"bfloat16"}
