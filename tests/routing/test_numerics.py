"""Extreme inputs, in layers whose experts have a slot for every token.

Such a sparse layer is a plain mixture, sum_e softmax(logits)_e expert_e(x),
whatever its affinity and choice, if tokens may choose experts outside their
transport plan. So its output is known, also for logits of size 1e4 and for
equal tokens. Soft MoE is compared with its own formula.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vmoe_study.nn.logits import LinearLogits
from vmoe_study.nn.moe import Moe, MoeOptions
from vmoe_study.nn.parameter_names import ROUTER_STATE
from vmoe_study.nn.zoo import ROUTERS

pytestmark = pytest.mark.slow

WIDTH, HIDDEN, GROUPS = 8, 16, 2
ROOMY = "a slot for every token"
# Tokens, experts, dtype.
SETTINGS = {
  "a single token": (1, 3, "float32"),
  "a single expert": (6, 1, "float32"),
  ROOMY: (6, 3, "bfloat16"),
}
INPUTS = ("plain", "huge logits", "equal tokens", "an empty expert")


def layer(name, setting, form):
  _, experts, dtype = SETTINGS[setting]
  by_token = name.endswith("_token_choice")
  candidates = {
    "num_experts": experts,
    "capacity_factor": 1.0 if by_token else float(experts),
    "num_selected_experts": experts,
    "fill_zero_scores": True,
    "max_experts_per_token": experts,
    "plan_form": form,
    "gshard_loss_weight": 0.1,
    "importance_loss_weight": 0.1,
    "router_z_loss_weight": 1e-9,  # The loss of logits of size 1e4 is huge.
  }
  valid = ROUTERS[name].options()
  options = {key: value for key, value in candidates.items() if key in valid}
  return Moe(MoeOptions(name, options), HIDDEN, dtype=dtype)


def forms(name, setting):
  if "plan_form" not in ROUTERS[name].options():
    return ("",)
  return ("index", "dense") if setting == ROOMY else ("index",)


@functools.cache
def shapes(name, setting):
  """Of the variables of a layer, in every plan form."""
  tokens, _, dtype = SETTINGS[setting]
  module = layer(name, setting, forms(name, setting)[0])
  x = jax.ShapeDtypeStruct((GROUPS, tokens, WIDTH), dtype)
  return jax.eval_shape(module.init, jax.random.key(0), x)


@functools.cache
def compiled(name, setting):
  """Output, aux and gradients of all plan forms, from parameters and tokens."""

  def run(params, x):
    def loss(params, x, form):
      module = layer(name, setting, form)
      # A threshold that every token passes.
      state = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, -1.0),
        shapes(name, setting).get(ROUTER_STATE, {}),
      )
      y, aux = module.apply({"params": params, ROUTER_STATE: state}, x)
      weights = jnp.sin(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
      total = jnp.sum(weights * y) + jnp.sum(aux.auxiliary_loss)
      return total, (y, aux)

    grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
    return [grad(params, x, form) for form in forms(name, setting)]

  return jax.jit(run)


def draw(name, setting, inputs):
  """Parameters and tokens."""
  tokens, experts, dtype = SETTINGS[setting]
  random = np.random.default_rng(0)
  x = random.normal(size=(GROUPS, tokens, WIDTH)).astype(dtype)
  if inputs == "equal tokens":
    x[:] = x[:1, :1]
  params = jax.tree.map(
    lambda p: random.normal(size=p.shape).astype(np.float32) / 4,
    shapes(name, setting)["params"],
  )
  router = jax.tree.leaves(params.get("Router", {}))
  if inputs == "huge logits":
    for leaf in router:
      leaf *= 1e4
  if inputs == "an empty expert" and experts > 1:
    x[..., 0] = 1
    for kernel in router:
      if kernel.ndim == 2:
        kernel[0, 1] = -1e3
  return params, x


def mixture(params, x):
  """Outputs of the mixture, in float64."""
  x = np.asarray(x, np.float64)
  kernel = params["Router"]["dense"]["kernel"]
  logits = x @ np.asarray(kernel, np.float64)
  gates = np.exp(logits - logits.max(-1, keepdims=True))
  gates /= gates.sum(-1, keepdims=True)
  y = experts(params, np.repeat(x[:, :, None], gates.shape[-1], 2))
  return np.einsum("gse,gsed->gsd", gates, y)


def soft_mixture(params, x):
  """Soft MoE: slots mix tokens, tokens mix slots; in float64."""
  x = np.asarray(x, np.float64)
  mu = np.asarray(params["Router"]["mu"], np.float64)
  unit = x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)
  mu = mu / np.sqrt((mu**2).sum(0, keepdims=True) + 1e-6)
  logits = params["Router"]["scale"] * np.einsum("gsd,dec->gsec", unit, mu)
  dispatch = scipy.special.softmax(logits, axis=1)
  combine = scipy.special.softmax(logits, axis=(2, 3))
  slots = np.einsum("gsec,gsd->gced", dispatch, x)
  return np.einsum("gsec,gced->gsd", combine, experts(params, slots))


def experts(params, x):
  """Outputs of each expert for its own rows, (..., E, D)."""
  first, second = (params["Mlp"][layer] for layer in ("Dense_0", "Dense_1"))
  hidden = np.einsum("...ed,edf->...ef", x, first["kernel"]) + first["bias"]
  hidden = np.asarray(jax.nn.gelu(hidden), np.float64)
  return (
    np.einsum("...ef,efd->...ed", hidden, second["kernel"]) + second["bias"]
  )


# Those whose mixture has the softmax of linear logits as its weights.
TRUTHS = {
  name: mixture
  for name, spec in ROUTERS.items()
  if spec.parts
  and spec.parts["logits_rule"] is LinearLogits
  and spec.default_options()["weights"] == "softmax"
}
TRUTHS |= {"soft": soft_mixture}


# Every transport, either choice, dropless routing and slots of means. The
# contract tests take every part through one token and one expert.
WITH_ONE = (
  "softmax_token_choice",
  "sparsity_constrained_token_choice",
  "sinkhorn_expert_choice",
  "sparsity_constrained_expert_choice",
  "dropless_token_choice",
  "soft",
)
CASES = [(name, ROOMY) for name in TRUTHS]
CASES += [(name, s) for name in WITH_ONE for s in SETTINGS if s != ROOMY]


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_finite_and_right(name, setting):
  for inputs in INPUTS:
    params, x = draw(name, setting, inputs)
    for grads, (y, aux) in compiled(name, setting)(params, x):
      for leaf in jax.tree.leaves((grads, y, aux)):
        assert np.all(np.isfinite(np.asarray(leaf, np.float32))), inputs
      rtol = 3e-2 if y.dtype == jnp.bfloat16 else 1e-5
      if name == "soft" and inputs == "huge logits":
        rtol = max(rtol, 1e-2)  # In float32 they are known to 1e-3.
      expected = TRUTHS[name](params, x)
      error = np.abs(np.asarray(y, np.float64) - expected).max()
      assert error <= rtol * np.abs(expected).max(), inputs
