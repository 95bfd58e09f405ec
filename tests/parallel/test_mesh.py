"""Sizes of the mesh axes."""

import pytest
from jax.sharding import AxisType

from vmoe_study.parallel.mesh import (
  AXES,
  MeshSpec,
  make_abstract_mesh,
  make_mesh,
)


@pytest.mark.parametrize(
  ("spec", "shape"),
  [
    (MeshSpec(), (8, 1)),
    (MeshSpec(2, -1), (2, 4)),
    (MeshSpec(-1, 8), (1, 8)),
    (MeshSpec(4, 2), (4, 2)),
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
