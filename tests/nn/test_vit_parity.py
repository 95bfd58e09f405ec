"""Vision Transformers against arrays computed by the public V-MoE code.

tests/data/reference/README.txt explains the arrays.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.vit import VisionTransformer

pytestmark = pytest.mark.slow

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "reference"
REFERENCE = np.load(FOLDER / "vit_moe.npz")
ROUTERS = {
  "softmax_tc_k1": ("softmax_token_choice", {"importance_loss_weight": 0.005}),
  "softmax_ec": ("softmax_expert_choice", {}),
  "sinkhorn_ec": ("sinkhorn_expert_choice", {}),
  "soft": ("soft", {}),
}
VARIANTS = {
  "gap_group_image": {},
  "gap_group_image_nobf16": {},
  "gap_group_batch": {},
  "token_group_image": {"pool": "token"},
}
CASES = [n.removesuffix("/logits") for n in REFERENCE.files if "logits" in n]
CASES = [case for case in CASES if case.count("/") == 1]


def _subtree(prefix):
  """Arrays under the prefix, by the rest of their path."""
  prefix += "/"
  return {
    name.removeprefix(prefix): REFERENCE[name]
    for name in REFERENCE.files
    if name.startswith(prefix)
  }


def _params(case):
  flat = _subtree("params")
  soft = case.startswith("soft/")
  flat |= _subtree("params_soft_router" if soft else "params_dense_router")
  if "/token" in case:
    flat |= _subtree("params_token_variant")
  return unflatten_dict(flat, sep="/")


def _model(case):
  router, variant = case.split("/")
  name, options = ROUTERS[router]
  options = {"num_experts": 4} | options
  images = 4 if "batch" in variant else 1
  return VisionTransformer(
    num_classes=10,
    patch_size=8,
    width=32,
    depth=4,
    mlp_dim=64,
    num_heads=4,
    moe=MoeOptions(name, options, group_images=images),
    **VARIANTS[variant],
  )


def _loss(model):
  def loss(params, images, labels):
    logits, outputs = model.apply({"params": params}, images)
    auxiliary = sum(aux.auxiliary_loss for aux in outputs.aux.values())
    log_p = jnp.take_along_axis(
      jax.nn.log_softmax(logits), labels[:, None], axis=1
    )
    total = auxiliary.mean() - log_p.mean()
    return total, (logits, outputs.features, auxiliary)

  return loss


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients(case):
  loss = _loss(_model(case))
  function = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (total, outputs), grads = function(
    _params(case), REFERENCE["images"], REFERENCE["labels"]
  )
  expected = _subtree(case)

  def assert_close(actual, name):
    np.testing.assert_allclose(
      actual, expected[name], rtol=1e-5, atol=1e-5, err_msg=name
    )

  assert_close(total, "loss_softmax_xent_plus_aux")
  names = "logits", "features_prelogits", "auxiliary_loss"
  for output, name in zip(outputs, names, strict=True):
    assert_close(output, name)

  grads = flatten_dict(grads, sep="/")
  norms = _subtree(f"{case}/gradnorm")
  assert norms.keys() == grads.keys()
  for path in norms:
    assert_close(np.linalg.norm(grads[path]), f"gradnorm/{path}")
  routers = _subtree(f"{case}/grad")
  assert routers.keys() == {path for path in grads if "/Router/" in path}
  for path in routers:
    assert_close(grads[path], f"grad/{path}")


def test_every_case_is_here():
  assert len(CASES) == 5
