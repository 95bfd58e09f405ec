"""Sizes of the mesh axes."""

import jax
import pytest
from jax.sharding import AxisType

from vmoe_study.parallel import mesh as mesh_lib
from vmoe_study.parallel.mesh import (
  AXES,
  MeshSpec,
  make_abstract_mesh,
  make_mesh,
)


@pytest.mark.parametrize(
  ("spec", "shape"),
  [
    (MeshSpec(), (1, 8, 1)),
    (MeshSpec(2, -1), (1, 2, 4)),
    (MeshSpec(-1, 8), (1, 1, 8)),
    (MeshSpec(4, 2), (1, 4, 2)),
  ],
)
def test_mesh_sizes(spec, shape):
  mesh, abstract = make_mesh(spec), make_abstract_mesh(spec, 8)
  assert mesh.devices.shape == abstract.axis_sizes == shape
  assert mesh.axis_names == abstract.axis_names == AXES
  assert set(mesh.axis_types + abstract.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ((3, -1), "8 devices"),
    ((2, 2), "8 devices"),
    ((16, -1), "8 devices"),
    ((0, 1), "mesh.replica=0"),
    ((-1, -1), "only one"),
  ],
)
def test_mesh_sizes_that_do_not_fit(sizes, message):
  with pytest.raises(ValueError, match=message):
    make_mesh(MeshSpec(*sizes))


@pytest.fixture
def two_slices(monkeypatch):
  """Devices are in two slices, every other one in the first."""
  monkeypatch.setattr(mesh_lib, "slice_of", lambda device: device.id % 2)


def test_replicas_are_spread_over_slices_and_experts_within_one(two_slices):
  mesh = make_mesh(MeshSpec(-1, 2))
  assert mesh.devices.shape == (2, 2, 2)
  slices = [{d.id % 2 for d in part.flat} for part in mesh.devices]
  assert slices == [{0}, {1}]
  assert mesh.devices.size == len({d.id for d in mesh.devices.flat}) == 8


def test_experts_are_not_divided_among_slices(two_slices):
  with pytest.raises(ValueError, match="mesh.expert=8: must divide the 4 dev"):
    make_mesh(MeshSpec(-1, 8))


def test_devices_that_are_no_tpus_are_in_one_slice():
  assert {mesh_lib.slice_of(device) for device in jax.devices()} == {0}
