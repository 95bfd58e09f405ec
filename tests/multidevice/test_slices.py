"""The training step compiled for a TPU slice; no TPU is needed."""

import jax
import pytest

pytest.importorskip("libtpu")

from vmoe_study.parallel import sharding
from vmoe_study.parallel.mesh import MeshSpec, make_mesh
from vmoe_study.performance.target import open_target
from vmoe_study.run.experiment import Model, Training

from .tiny import assert_only_exchanges, batch, config


@pytest.fixture(scope="module")
def chips():
  return open_target("v5e:4x4").devices


def compiled(chips, router, expert):
  """The step on all chips, `expert` of which share the experts out."""
  made = config(router, len(chips) // expert, expert)
  mesh = make_mesh(made.mesh, chips)
  training = Training(Model(made, (8, 8, 1), mesh), num_examples=1000)
  images = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding.batch_sharding(mesh)
    ),
    batch(),
  )
  return training.step.lower(training.state_template(), images).compile()


# Every form of plan, and both kinds of transport, which are loops.
@pytest.mark.parametrize(
  "router",
  ["sinkhorn_token_choice", "sparsity_constrained_expert_choice", "soft"],
)
def test_one_all_to_all_each_way_and_no_all_gather(chips, router):
  assert_only_exchanges(compiled(chips, router, 8).as_text(), router)


@pytest.mark.parametrize("expert", [1, 2, 4, 8, 16])
def test_rows_of_a_batch_belong_to_the_hosts_in_turn(chips, expert):
  mesh = make_mesh(MeshSpec(-1, expert), chips)
  hosts = [chip.process_index for chip in mesh.devices.flat]
  assert hosts == [host for host in range(4) for _ in range(4)]


def test_every_mesh_is_possible_on_every_slice():
  chips = open_target("v6e:4x4").devices
  for expert in (1, 2, 4, 8, 16):
    mesh = make_mesh(MeshSpec(-1, expert), chips)
    shape = {"slice": 1, "replica": 16 // expert, "expert": expert}
    assert mesh.shape == shape
