"""Starting points: every kind of source, on real weights and real images."""

import json
import pathlib

import cv2
import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from configs import finetune
from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.checkpoint.foreign.architecture import infer_model
from vmoe_study.checkpoint.foreign.npz import load_npz, save_npz
from vmoe_study.checkpoint.foreign.vmoe import read_vmoe
from vmoe_study.checkpoint.load import load_params
from vmoe_study.checkpoint.store import CheckpointStore
from vmoe_study.cli.main import main
from vmoe_study.config import InitializeSpec, parse
from vmoe_study.doctor.model import check_initial_params
from vmoe_study.parallel import sharding
from vmoe_study.parallel.mesh import MeshSpec, make_mesh
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.experiment import Model, Training
from vmoe_study.run.initialize import initial_params
from vmoe_study.run.inputs import make_evaluators, open_train_input
from vmoe_study.run.metadata import Metadata
from vmoe_study.run.train import train as train_run
from vmoe_study.training.metrics_file import read_metrics

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
REFERENCE = ROOT / "tests" / "data" / "reference"
PREFIX = str(REFERENCE / "vmoe_checkpoint" / "vmoe_v1")
SIZES = {
  "patch_size": 2,
  "width": 16,
  "depth": 2,
  "mlp_dim": 24,
  "num_heads": 2,
}


def make_model(size=8, moe=None, classes=10, devices=1, expert=1, **changes):
  """A model for digits of this size, which may be of other sizes itself."""
  data = {
    "name": "digits",
    "split": "train",
    "ops": f"resize({size})|value_range(-1, 1)",
    "num_classes": classes,
  }
  config = {
    "name": "small",
    "model": {
      "fields": {**SIZES, "num_classes": classes, **changes},
      "moe": moe or {},
    },
    "data": data,
    "train": {"batch_size": 16, "num_steps": 1},
  }
  spec = MeshSpec(expert=expert)
  mesh = make_mesh(spec, jax.devices()[:devices])
  return Model(parse(config), (size, size, 1), mesh)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
  """A dense model and a file of its parameters, which are nowhere zero."""
  model = make_model(representation_size=12)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda leaf: 0.3 * rng.normal(size=leaf.shape).astype(np.float32),
    model.params_shape,
  )
  path = str(tmp_path_factory.mktemp("dense") / "vit.npz")
  save_npz(path, params)
  return model, params, InitializeSpec("npz", path)


@pytest.mark.usefixtures("eight_devices")
def test_upcycled_model_reproduces_its_dense_parent(dense):
  model, params, spec = dense
  options = {"num_experts": 4, "num_selected_experts": 4}
  moe = {"router": "softmax_token_choice", "options": options}
  upcycled = make_model(moe=moe, devices=4, expert=4, representation_size=12)
  images = np.random.default_rng(1).normal(size=(4, 8, 8, 1))
  expected = model.predict({"params": params}, images)
  started = initial_params(spec, upcycled)
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(
    upcycled.predict({"params": started}, images), expected, atol=1e-5
  )
  shardings = jax.tree.map(lambda leaf: leaf.sharding, started)
  assert shardings == upcycled.params_sharding


@pytest.mark.parametrize(
  "router",
  [
    "softmax_expert_choice",
    "soft",
    "cosine_token_choice",
    "hash",
    "dropless_token_choice",
    "bias_adjusted_token_choice",
  ],
)
def test_routers_start_from_a_dense_model(dense, router):
  _, params, spec = dense
  moe = {"router": router, "options": {"num_experts": 2}}
  model = make_model(moe=moe, representation_size=12)
  started = initial_params(spec, model)["Encoder"]["encoderblock_1"]
  parent = params["Encoder"]["encoderblock_1"]
  for name, layer in parent["Mlp"].items():
    for kind, leaf in layer.items():
      experts = started["Moe"]["Mlp"][name][kind]
      np.testing.assert_array_equal(experts, np.stack([leaf, leaf]))
  assert all(map(np.any, jax.tree.leaves(started["Moe"].get("Router", {}))))


NAMES_OF_OTHERS = {
  "augreg": (
    ("/Mlp/", "/MlpBlock_3/"),
    ("/SelfAttention/", "/MultiHeadDotProductAttention_1/"),
    ("/LayerNorm_1/", "/LayerNorm_2/"),
    ("Encoder/", "Transformer/"),
  ),
  "big_vision": (
    ("Encoder/posembed_input/", ""),
    ("/Mlp/", "/MlpBlock_0/"),
    ("/SelfAttention/", "/MultiHeadDotProductAttention_0/"),
    ("/LayerNorm/", "/LayerNorm_0/"),
    ("/MultiHeadDotProductAttention/", "/MultiHeadDotProductAttention_0/"),
    ("MapHead/", "MAPHead_0/"),
    ("Encoder/", "Transformer/"),
  ),
}


@pytest.mark.parametrize(
  "names,changes",
  [
    ("augreg", {"pool": "token", "representation_size": 12}),
    ("augreg", {"pool": "token"}),
    ("big_vision", {"pool": "token"}),
    ("big_vision", {"pool": "map"}),
    ("big_vision", {"posemb": "sincos2d", "representation_size": 12}),
  ],
)
def test_dense_models_of_others(tmp_path, names, changes):
  model = make_model(**changes)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape), model.params_shape)
  leaves = tree_lib.flatten(params)
  path = "Encoder/posembed_input/pos_embedding"
  if names == "big_vision" and changes.get("pool") == "token":
    # There the class token is added after the positions.
    leaves[path][:, 0] = 0
    written = leaves | {path: leaves[path][:, 1:]}
  else:
    written = leaves
  arrays = {}
  for name, leaf in written.items():
    for ours, theirs in NAMES_OF_OTHERS[names]:
      name = name.replace(ours, theirs)
    arrays[name] = leaf
  assert not arrays.keys() & {n for n in leaves if n.startswith("Encoder")}
  np.savez(tmp_path / "vit.npz", **arrays)
  loaded = tree_lib.flatten(load_npz(str(tmp_path / "vit.npz")))
  assert loaded.keys() == leaves.keys()
  for name, leaf in leaves.items():
    np.testing.assert_array_equal(loaded[name], leaf, name)


def test_a_head_of_other_classes_starts_from_zero(dense):
  _, params, spec = dense
  model = make_model(classes=7, representation_size=12)
  started = initial_params(spec, model)
  assert not any(map(np.any, jax.tree.leaves(started.pop("head"))))
  kept = {name: tree for name, tree in params.items() if name != "head"}
  jax.tree.map(np.testing.assert_array_equal, started, kept)


def test_without_the_representation_layer_the_head_is_new(dense):
  _, params, spec = dense
  started = initial_params(spec, make_model())
  assert "pre_logits" not in started
  assert not np.any(started["head"]["kernel"])
  path = "embedding/kernel"
  started, params = tree_lib.flatten(started), tree_lib.flatten(params)
  np.testing.assert_array_equal(started[path], params[path])


@pytest.mark.parametrize(
  "changes,message",
  [
    (
      {"posemb": "sincos2d"},
      r"1 not used: Encoder/posembed_input/pos_embedding\n.*set model.fields",
    ),
    ({"width": 8}, "36 of another shape: Encoder/encoder_norm"),
    ({"pool": "token"}, "only one of the two has a class token"),
    ({"depth": 3}, r"missing: Encoder/encoderblock_2/"),
  ],
)
def test_other_differences_are_errors(dense, changes, message):
  model = make_model(**{"representation_size": 12, **changes})
  with pytest.raises(ValueError, match=message):
    initial_params(dense[2], model)


POSITIONS = "Encoder/posembed_input/pos_embedding"


def _save(workdir, config, image_shape):
  """A checkpoint whose positions are the column of their patch."""
  model = Model(config, image_shape, make_mesh(MeshSpec(), jax.devices()[:1]))
  shapes = tree_lib.flatten(model.params_shape)
  leaves = {path: np.zeros(x.shape, x.dtype) for path, x in shapes.items()}
  rows, columns = image_shape[0] // 2, image_shape[1] // 2
  grid = np.broadcast_to(np.arange(columns)[None, :, None], (rows, columns, 16))
  leaves[POSITIONS] = grid.reshape(1, -1, 16).astype(np.float32)
  store = CheckpointStore(workdir_lib.checkpoints(workdir))
  metadata = Metadata(config.to_dict(), image_shape).to_dict()
  store.save(0, tree_lib.unflatten(leaves), None, metadata, wait=True)
  store.close()


@pytest.mark.parametrize(
  "old,new",
  [
    ((4, 16, 1), (8, 8, 1)),  # As many patches, in another order.
    ((8, 8, 1), (4, 16, 1)),
    ((4, 16, 1), (4, 16, 1)),
  ],
)
def test_positions_follow_the_grid_of_the_images(tmp_path, old, new):
  config = make_model().config
  _save(tmp_path, config, old)
  spec = InitializeSpec("checkpoint", str(tmp_path))
  model = Model(config, new, make_mesh(MeshSpec(), jax.devices()[:1]))
  found = tree_lib.flatten(initial_params(spec, model))[POSITIONS]
  found = found.reshape(new[0] // 2, new[1] // 2, 16)
  columns = np.linspace(0, old[1] // 2 - 1, new[1] // 2)
  expected = np.broadcast_to(columns[None, :, None], found.shape)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  # `doctor` says the same.
  assert check_initial_params(spec, model)[0].status == "ok"


def test_a_file_that_does_not_say_its_grid_is_of_square_images(tmp_path):
  model = make_model()
  leaves = tree_lib.flatten(model.init())
  leaves[POSITIONS] = np.zeros((1, 6, 16), np.float32)
  path = str(tmp_path / "vit.npz")
  save_npz(path, tree_lib.unflatten(leaves))
  spec = InitializeSpec("npz", path)
  message = "6 positions of the source do not form a.*kind='checkpoint'"
  with pytest.raises(ValueError, match=message):
    initial_params(spec, model)
  (problem, *_) = check_initial_params(spec, model)
  assert problem.status == "PROBLEM" and "not form a square" in problem.text


@pytest.mark.parametrize("height", [4, 8])
def test_positions_alone_are_exported_of_square_images(
  tmp_path, height, capsys
):
  """A file of 2 x 8 patches would be read as one of 4 x 4."""
  _save(tmp_path, make_model().config, (height, 64 // height, 1))
  words = ["export", f"--workdir={tmp_path}", f"--out={tmp_path}/vit.npz"]
  assert main(words) == (0 if height == 8 else 2)
  if height == 4:
    assert "are those of 2 x 8 patches" in capsys.readouterr().err
  assert (tmp_path / "vit.npz").exists() == (height == 8)


def test_images_of_as_many_patches_in_another_grid_are_refused():
  model = make_model()
  with pytest.raises(ValueError, match=r"test: its images are 4 x 16"):
    model.check_images("test", (4, 16, 1))
  make_model(posemb="sincos2d").check_images("test", (4, 16, 1))


def test_a_run_goes_on_with_the_same_grid_only(tmp_path):
  config = make_model().config.to_dict()
  config["data"] |= {
    "name": "image_folder",
    "data_dir": str(tmp_path / "data"),
    "ops": "flip_lr",
  }

  def train_on(shape):
    for i in range(16):
      folder = tmp_path / "data" / "train" / f"class {i % 2}"
      folder.mkdir(parents=True, exist_ok=True)
      cv2.imwrite(str(folder / f"{i}.png"), np.zeros((*shape, 3), np.uint8))
    train_run(parse(config), tmp_path / "run")

  train_on((4, 16))
  with pytest.raises(ValueError, match="checkpoint: its images are 4 x 16"):
    train_on((8, 8))
  train_on((4, 16))


@pytest.mark.parametrize(
  "values", [{"kind": "npz"}, {"path": "vit.npz"}, {"kind": "pt", "path": "x"}]
)
def test_kind_and_path_belong_together(values):
  config = {
    "name": "small",
    "model": {"fields": {**SIZES, "num_classes": 10}},
    "data": {
      "name": "digits",
      "split": "train",
      "ops": "resize(8)",
      "num_classes": 10,
    },
    "train": {"batch_size": 16, "num_steps": 1},
    "initialize": values,
  }
  with pytest.raises(ValueError, match=r"config\.initialize.*kind="):
    parse(config)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  """Digits as RGB images in one folder per class."""
  root = tmp_path_factory.mktemp("photographs")
  digits = load_digits()
  for i, (image, label) in enumerate(
    zip(digits.images, digits.target, strict=True)
  ):
    folder = root / ("test" if i % 5 == 0 else "train") / str(label)
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.uint8(image * (255 / 16))
    cv2.imwrite(str(folder / f"{i}.png"), pixels)
  return root


def imported(photographs, size, **moe):
  """A config that starts from the published weights."""
  model = infer_model(read_vmoe(PREFIX))
  model["moe"] |= moe
  data = {
    "name": "image_folder",
    "ops": f"resize({size})|value_range(-1, 1)",
    "num_classes": 10,
    "data_dir": str(photographs),
  }
  test = {"data": {**data, "split": "test"}, "batch_size": 120}
  return parse(
    {
      "name": "imported",
      "model": model,
      "data": {**data, "split": "train"},
      "initialize": {"kind": "vmoe", "path": PREFIX},
      "train": {
        "batch_size": 64,
        "num_steps": 60,
        "optimizer": {"clip_norm": 1.0},
        "schedule": {"peak": 3e-3, "warmup_steps": 4},
      },
      "evaluations": {"test": test},
    }
  )


@pytest.mark.usefixtures("eight_devices")
def test_imported_model_gives_the_published_logits(photographs):
  config = imported(photographs, 32)
  mesh = make_mesh(MeshSpec(expert=4), jax.devices()[:4])
  model = Model(config, (32, 32, 3), mesh)
  params = initial_params(config.initialize, model)
  with np.load(REFERENCE / "vit_moe.npz") as published:
    logits = model.predict({"params": params}, published["images"])
    expected = published["softmax_tc_k1/gap_group_image/logits"]
  np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_fine_tuning_an_imported_model_at_twice_the_resolution(photographs):
  config = imported(photographs, 64)
  data = open_train_input(config)
  assert data.image_shape == (64, 64, 3)
  model = Model(config, data.image_shape)
  training = Training(model, data.num_examples)
  (evaluator,) = make_evaluators(model)
  state = training.init(initial_params(config.initialize, model))
  before = dict(evaluator.run(state.variables))["test/accuracy"]
  for step in range(training.num_steps):
    batch = sharding.to_global(model.mesh, data[step])
    state, _ = training.step(state, batch)
  after = dict(evaluator.run(state.variables))["test/accuracy"]
  assert after > before + 0.2


@pytest.mark.cli
def test_fine_tuning_a_run_of_ours_from_the_command_line(tmp_path):
  first, second = tmp_path / "pretrained", tmp_path / "tuned"
  model = "smoke=true,recipe=softmoe,router=softmax_expert_choice,group=8"
  train(
    first,
    f"configs/pretrain.py:fewshot=none,{model}",
    "num_steps=100",
    "schedule.peak=3e-3",
  )
  out = tmp_path / "fewshot.json"
  evaluate = ["evaluate", f"--workdir={first}", f"--out={out}"]
  assert main([*evaluate, f"--config=configs/fewshot.py:{model}"]) == 0
  assert json.loads(out.read_text())["fewshot/digits/10shot"] > 0.5

  # A greater capacity than before, and twice the resolution.
  arguments = f"start={first},capacity=2,{model}"
  config = parse(finetune.get_config(arguments).to_dict())
  start = Model(config, (16, 16, 1))
  params = initial_params(config.initialize, start)
  source, _, step = load_params(workdir_lib.checkpoints(first))
  assert step == 100 and config.initialize.kind == "checkpoint"
  np.testing.assert_array_equal(
    params["embedding"]["kernel"], source["embedding"]["kernel"]
  )
  before = {}
  for evaluator in make_evaluators(start):
    before |= evaluator.run({"params": params})
  train(second, f"configs/finetune.py:{arguments}", "num_steps=40")
  measured = [row for row in read_metrics(second) if "val/accuracy" in row]
  after = measured[-1]["val/accuracy"]
  assert after > before["val/accuracy"] + 0.1


def train(workdir, config, *overrides):
  flags = [f"--config.train.{override}" for override in overrides]
  command = ["train", f"--workdir={workdir}", f"--config={ROOT / config}"]
  assert main([*command, *flags]) == 0
