"""Training on several slices: the same numbers, less to send between them."""

import jax
import numpy as np
import pytest

from vmoe_study.parallel import mesh as mesh_lib
from vmoe_study.parallel import sharding
from vmoe_study.performance import hlo
from vmoe_study.run.experiment import Model, Training

from .tiny import batch, config

SLICES = 2


def slice_index(device):
  """Neighbours are in different slices, so that an order by id is wrong."""
  return device.id % SLICES


def train(expert, fsdp=False, steps=3):
  """Losses, the last state, and the compiled step."""
  made = config("softmax_expert_choice", 8 // expert, expert, fsdp=fsdp)
  training = Training(Model(made, (8, 8, 1)), num_examples=1000)
  batch_sharding = sharding.batch_sharding(training.model.mesh)
  state, losses = training.init(), []
  step = training.step.lower(
    state, jax.device_put(batch(), batch_sharding)
  ).compile()
  for number in range(steps):
    state, metrics = step(state, jax.device_put(batch(number), batch_sharding))
    losses.append(float(metrics["loss"]))
  return losses, state, step


@pytest.fixture(scope="module")
def losses_of_one_slice():
  return train(4)[0]


@pytest.fixture
def slices(monkeypatch):
  monkeypatch.setattr(mesh_lib, "slice_of", slice_index)


def spread(array):
  """How many slices each part of an array is in: {part: {slices}}."""
  found = {}
  for shard in array.addressable_shards:
    part = str(shard.index)
    found.setdefault(part, set()).add(slice_index(shard.device))
  return found


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True])
def test_slices_train_the_same_and_hold_everything(
  fsdp, losses_of_one_slice, slices
):
  losses, state, step = train(4, fsdp)
  np.testing.assert_allclose(losses, losses_of_one_slice, 1e-5)
  kernel = state.params["embedding"]["kernel"]
  moe = state.params["Encoder"]["encoderblock_1"]["Moe"]["Mlp"]
  for array in (
    kernel,
    moe["Dense_0"]["kernel"],
    state.opt_state[0].trace["embedding"]["kernel"],
  ):
    assert set(map(frozenset, spread(array).values())) == {frozenset({0, 1})}
  shares = kernel.nbytes // kernel.addressable_shards[0].data.nbytes
  assert shares == (4 if fsdp else 1)  # The devices of one slice.

  # Tokens stay within slices, whatever the numbers of their devices.
  devices = state.step.sharding.mesh.devices.flat
  traffic = hlo.traffic(hlo.schedule(step.as_text()))
  where = np.array([slice_index(device) for device in devices])
  for collective in traffic.collectives:
    if collective.kind == "all-to-all":
      assert (np.ptp(where[collective.groups], axis=1) == 0).all()
  kinds = {c.kind for c in traffic.collectives}
  assert {"all-to-all", "all-reduce"} <= kinds


def test_experts_do_not_span_slices(slices):
  made = config("softmax_expert_choice", 1, 8)
  with pytest.raises(ValueError, match="mesh.expert=8: must divide the 4"):
    Model(made, (8, 8, 1))
