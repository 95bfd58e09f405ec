"""The recipes at their smoke size: routers train on real images."""

import jax
import numpy as np
import pytest

from configs import pretrain
from vmoe_study.config import parse
from vmoe_study.parallel.mesh import make_mesh
from vmoe_study.parallel.sharding import to_global
from vmoe_study.run.experiment import Model, Training
from vmoe_study.run.inputs import open_train_input

from ..routers import OTHER_KINDS, STUDY

RECIPES = {"soft": "softmoe", "softmax_expert_choice": "softmoe"}


@pytest.mark.slow
@pytest.mark.parametrize("router", [*STUDY, *OTHER_KINDS, "dense"])
def test_two_steps_of_a_router(router):
  arguments = f"smoke=true,group=8,router={router}"
  arguments += f",recipe={RECIPES.get(router, 'vmoe')}"
  config = parse(pretrain.get_config(arguments).to_dict())
  data = open_train_input(config)
  mesh = make_mesh(config.mesh, jax.devices()[:1])
  model = Model(config, data.image_shape, mesh)
  training = Training(model, data.num_examples)
  state = training.init()
  before = jax.tree.map(np.asarray, state.params)
  losses = []
  for step in range(2):
    batch = to_global(model.mesh, data[step])
    state, metrics = training.step(state, batch)
    losses.append(float(metrics["main_loss"]))
  # A zero head gives every class the probability 1/10, its bias's: the loss is
  # log 10 for the label and -log(10/11) for the other nine.
  classes = config.data.num_classes
  yes, no = np.log1p(classes), -np.log(classes / (classes + 1))
  np.testing.assert_allclose(losses[0], yes + (classes - 1) * no, rtol=1e-5)
  assert losses[1] < losses[0]
  change = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, state.params)
  assert change["head"]["kernel"] > 0
  if router != "dense":
    experts = change["Encoder"]["encoderblock_1"]["Moe"]["Mlp"]
    assert all(value > 0 for value in jax.tree.leaves(experts))


@pytest.mark.slow
@pytest.mark.usefixtures("eight_devices")
def test_mixup_of_the_recipes_stays_on_a_device():
  """Labels of eight images on each of eight devices, with those that follow."""
  values = pretrain.get_config("smoke=true,fewshot=none,router=dense").to_dict()
  values["train"]["mixup"] = 0.5
  config = parse(values)
  data = open_train_input(config)
  model = Model(config, data.image_shape)
  training = Training(model, data.num_examples)
  batch = to_global(model.mesh, data[0])
  mixed = jax.jit(training._augment)(batch, jax.random.key(1))["label"]
  labels = np.eye(10)[data[0]["label"].astype(int)].reshape(8, 8, 10)
  following = np.roll(labels, -1, axis=1)
  for device in range(8):
    found = np.asarray(mixed).reshape(8, 8, 10)[device]
    own, other = labels[device], following[device]
    differ = (own != other).any(-1)
    weights = found[differ][own[differ] > other[differ]]
    assert np.ptp(weights) < 1e-6 and 0.5 <= weights[0] <= 1
    expected = weights[0] * own + (1 - weights[0]) * other
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
  "arguments,message",
  [
    ("backbone=S/16", r"backbone='S/16': must be one of \['S8/32'"),
    ("data=jft300m", r"data='jft300m': must be one of \['jft'"),
    ("fewshot=all", "fewshot='all': must be one of"),
    ("recipe=softmoe,backbone=X/16", "backbone='X/16': must be one of"),
    ("smoke=yes", "smoke='yes': must be of type bool"),
    ("expert=8", "'expert=8': must be NAME=VALUE with a name in"),
    ("router=softmax_expert_choise", "Did you mean 'softmax_expert_choice'"),
  ],
)
def test_wrong_arguments_are_explained(arguments, message):
  with pytest.raises(ValueError, match=message):
    pretrain.get_config(arguments)
