"""Products that may not be rounded to TF32 or bfloat16, in traced programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.lax import Precision

from vmoe_study.nn.vit import VisionTransformer
from vmoe_study.nn.zoo import ROUTERS, make_router

from ..jaxprs import equations

IN_FULL = Precision.HIGHEST, Precision.HIGHEST
CLASSES, FEATURES = 37, 53  # Of no other array.
# These compute no products.
UNLEARNED = {"random", "hash", "identity", "uniform"}


def products(function, *arguments):
  """Precision and sizes of each product, forward and backward."""
  program = jax.make_jaxpr(jax.value_and_grad(function))(*arguments)
  return [
    (
      equation.params["precision"],
      {n for v in (*equation.invars, *equation.outvars) for n in v.aval.shape},
    )
    for equation in equations(program.jaxpr)
    if equation.primitive.name == "dot_general"
  ]


def shapes_of(module, x):
  return jax.eval_shape(module.init, jax.random.key(0), x)


@pytest.mark.parametrize("name", ROUTERS)
def test_routers_multiply_in_full(name):
  x = jnp.ones((2, 12, 8))
  router = make_router(name, num_experts=4)

  def loss(x, variables):
    plan, aux = router.apply(variables, x)
    losses = sum(loss.sum() for loss in aux.losses.values())
    return (plan.dispatch_tensor() + plan.combine_tensor()).sum() + losses

  found = products(loss, x, shapes_of(router, x))
  assert {precision for precision, _ in found} <= {IN_FULL}
  assert bool(found) == (name not in UNLEARNED)


def test_the_head_multiplies_in_full():
  images = jnp.ones((2, 8, 8, 3))
  model = VisionTransformer(
    num_classes=CLASSES,
    representation_size=FEATURES,
    patch_size=4,
    width=16,
    depth=1,
    mlp_dim=12,
    num_heads=2,
  )
  found = products(
    lambda variables, images: model.apply(variables, images)[0].sum(),
    shapes_of(model, images),
    images,
  )
  head = [
    precision for precision, sizes in found if sizes & {CLASSES, FEATURES}
  ]
  # Two layers: outputs, gradients of inputs and of kernels.
  assert head == [IN_FULL] * 6
  assert len(found) > len(head)
