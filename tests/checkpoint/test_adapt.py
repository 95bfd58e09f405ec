"""Matching, upcycling and resizing parameters for another model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vmoe_study.checkpoint import adapt
from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.vit import VisionTransformer

pytestmark = pytest.mark.slow

SIZES = {
  "num_classes": 5,
  "patch_size": 4,
  "width": 16,
  "depth": 2,
  "mlp_dim": 24,
  "num_heads": 2,
}
POSITIONS = "Encoder/posembed_input/pos_embedding"


def _model(moe=None, size=16, **changes):
  """A model and parameters that are nowhere zero."""
  module = VisionTransformer(**(SIZES | changes), moe=moe)
  images = jax.random.normal(jax.random.key(1), (2, size, size, 3))
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
  leaves, structure = jax.tree.flatten(shapes)
  rng = np.random.default_rng(0)
  params = jax.tree.unflatten(
    structure,
    [jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype) for x in leaves],
  )
  return module, params, images


@pytest.fixture(scope="module")
def dense():
  return _model()


def test_matching_takes_what_agrees_and_reports_the_rest(dense):
  _, source, _ = dense
  _, template, _ = _model(num_classes=7, representation_size=3, width=16)
  del template["embedding"]
  params, report = adapt.match_params(source, template)
  head = (16, 5), (3, 7)
  assert report.mismatched == {
    "head/bias": ((5,), (7,)),
    "head/kernel": head,
  }
  assert report.missing == ("pre_logits/bias", "pre_logits/kernel")
  assert report.unused == ("embedding/bias", "embedding/kernel")
  assert not report.complete
  assert "2 not used: embedding/bias, embedding/kernel" in str(report)
  assert "head/bias (shape (5,), the model has (7,))" in str(report)
  given, filled = tree_lib.flatten(source), tree_lib.flatten(params)
  initial = tree_lib.flatten(template)
  for path, leaf in filled.items():
    origin = given if path in report.used else initial
    np.testing.assert_array_equal(leaf, origin[path], err_msg=path)


def test_matching_keeps_dtype_and_place_of_the_model(dense):
  _, source, _ = dense
  mesh = jax.make_mesh(
    (2,), ("expert",), axis_types=(jax.sharding.AxisType.Auto,)
  )
  sharding = jax.sharding.NamedSharding(mesh, jax.P("expert"))
  kernel = jax.device_put(jnp.zeros((16, 5), jnp.bfloat16), sharding)
  params, report = adapt.match_params(
    {"head": source["head"]}, {"head": source["head"] | {"kernel": kernel}}
  )
  assert report.complete
  assert params["head"]["kernel"].dtype == jnp.bfloat16
  assert params["head"]["kernel"].sharding == sharding


def test_every_upcycled_expert_is_a_copy_of_the_dense_mlp(dense):
  _, params, _ = dense
  moe = MoeOptions("softmax_token_choice", {"num_experts": 4}, blocks=(1,))
  _, template, _ = _model(moe)
  upcycled, report = adapt.match_params(
    adapt.upcycle(params, template), template
  )
  assert report.complete
  leaves = tree_lib.flatten(upcycled)
  given, initial = tree_lib.flatten(params), tree_lib.flatten(template)
  mlp, block = "Encoder/encoderblock_1/Mlp", "Encoder/encoderblock_1/Moe"
  for path in [path for path in given if path.startswith(mlp)]:
    experts = leaves.pop(path.replace(mlp, f"{block}/Mlp"))
    np.testing.assert_array_equal(experts, np.stack([given.pop(path)] * 4))
  router = f"{block}/Router/dense/kernel"
  np.testing.assert_array_equal(leaves.pop(router), initial[router])
  assert leaves.keys() == given.keys()
  for path, leaf in leaves.items():
    np.testing.assert_array_equal(leaf, given[path], err_msg=path)


def test_upcycling_needs_a_dense_mlp_of_the_same_size(dense):
  moe = MoeOptions("softmax_expert_choice", {"num_experts": 4}, blocks=(1,))
  _, template, _ = _model(moe, mlp_dim=25)
  with pytest.raises(ValueError, match=r"every expert needs .*\(25,\)"):
    adapt.upcycle(dense[1], template)


def _bilinear(grid, sides):
  """Interpolates (h, w, D) along one axis after the other."""
  for axis, side in enumerate(sides):
    old = np.arange(grid.shape[axis])
    new = np.linspace(0, old[-1], side)
    grid = np.apply_along_axis(
      lambda values, new=new, old=old: np.interp(new, old, values), axis, grid
    )
  return grid


def _positions(grid, token, values=None):
  """A tree of position embeddings of 8 features."""
  shape = (1, grid[0] * grid[1] + token, 8)
  values = np.zeros(shape) if values is None else values
  return tree_lib.unflatten({POSITIONS: values.astype(np.float32)})


@pytest.mark.parametrize("token", [0, 1])
@pytest.mark.parametrize(
  "old,new",
  [
    ((3, 3), (6, 6)),
    ((4, 4), (4, 4)),
    ((6, 6), (2, 2)),
    ((2, 8), (4, 4)),  # As many patches, in another order.
    ((4, 4), (8, 2)),
    ((3, 5), (5, 3)),
    ((4, 16), (16, 16)),
    ((1, 5), (2, 3)),
  ],
)
def test_positions_are_resized_linearly(old, new, token):
  rng = np.random.default_rng(0)
  values = rng.normal(size=(1, old[0] * old[1] + token, 8)).astype(np.float32)
  source = _positions(old, token, values)
  resized = adapt.resize_positions(source, _positions(new, token), old, new)
  if old[0] == old[1] and new[0] == new[1]:  # Squares need not be given.
    square = adapt.resize_positions(source, _positions(new, token))
    jax.tree.map(np.testing.assert_array_equal, square, resized)
  resized = tree_lib.flatten(resized)[POSITIONS]
  expected = _bilinear(values[0, token:].reshape(*old, 8), new)
  assert resized.dtype == np.float32
  np.testing.assert_array_equal(resized[0, :token], values[0, :token])
  np.testing.assert_allclose(
    resized[0, token:].reshape(*new, 8), expected, atol=1e-6
  )


def test_a_grid_must_have_as_many_patches_as_positions():
  tree = _positions((4, 4), 0)
  with pytest.raises(ValueError, match="the source has 16 .* 3 x 4 patches"):
    adapt.resize_positions(tree, tree, (3, 4), (4, 4))
  with pytest.raises(ValueError, match="the model has 16 .* 2 x 9 patches"):
    adapt.resize_positions(tree, tree, (4, 4), (2, 9))


@pytest.mark.parametrize(
  "old,new,message",
  [
    (16, 37, "only one of the two"),
    (15, 16, "15 positions of the source do not form a square"),
    (16, 15, "of the model do not form a square"),
  ],
)
def test_positions_that_cannot_be_resized(old, new, message):
  source = tree_lib.unflatten({POSITIONS: np.zeros((1, old, 4))})
  template = tree_lib.unflatten({POSITIONS: np.zeros((1, new, 4))})
  with pytest.raises(ValueError, match=message):
    adapt.resize_positions(source, template)


def test_models_without_learned_positions_are_left_alone(dense):
  template = dense[1] | {"Encoder": {}}
  assert adapt.resize_positions(dense[1], template) is dense[1]
  assert adapt.resize_positions(template, dense[1]) is template
