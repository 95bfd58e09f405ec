"""`export`: what it writes is opened again, and read without this package."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import cv2
import jax
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core import constants as tfds_constants

from vmoe_study.checkpoint import exported
from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.load import load_params
from vmoe_study.cli.main import main
from vmoe_study.config import InitializeSpec
from vmoe_study.data.augment import value_range
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.checkpoint import Checkpoint, open_checkpoint
from vmoe_study.run.config_file import load_config
from vmoe_study.run.experiment import Model
from vmoe_study.run.export import export_model
from vmoe_study.run.initialize import initial_params
from vmoe_study.run.metadata import Metadata
from vmoe_study.run.program import PLATFORMS, make_program

from ..fake_gcs import fake_gcs

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
FLOATS = value_range(IMAGES, -1, 1)
FILES = {"model.safetensors", "config.json", "README.md"}


@pytest.fixture(scope="module")
def hub(trained, tmp_path_factory):
  """The exported run as the cache of a hub holds it: links to blobs."""
  root = tmp_path_factory.mktemp("models--us--digits")
  made = root / "made"
  assert main(["export", f"--workdir={trained}", f"--out={made}"]) == 0
  assert {path.name for path in made.iterdir()} == FILES
  snapshot = root / "snapshots" / "0123abcd"
  for folder in (root / "blobs", snapshot):
    folder.mkdir(parents=True)
  for path in made.iterdir():
    name = hashlib.sha256(path.read_bytes()).hexdigest()
    shutil.move(path, root / "blobs" / name)
    (snapshot / path.name).symlink_to(f"../../blobs/{name}")
  return snapshot


def refuse(constant):
  raise AssertionError(f"{constant} is no JSON")


def test_the_files_are_what_their_formats_say(trained, hub):
  params, metadata, step = load_params(workdir_lib.checkpoints(trained))
  arrays = safetensors.numpy.load_file(hub / "model.safetensors")
  expected = tree_lib.flatten({"params": params})
  assert arrays.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(arrays[name], array)
  text = (hub / "config.json").read_text()
  config = json.loads(text, parse_constant=refuse)
  assert (config["step"], config["image_ops"]) == (step, "value_range(-1, 1)")
  assert config["config"] == metadata["config"]
  assert config["class_names"] == metadata["class_names"]
  card = (hub / "README.md").read_text()
  assert card.startswith("---\nlibrary_name: vmoe_study\n")
  metrics = (trained / "metrics.jsonl").read_text().splitlines()
  accuracy = json.loads(metrics[-1])["test/accuracy"]
  assert f"- test/accuracy: {accuracy:.4g}\n" in card


def test_it_opens_like_the_run(trained, hub):
  run, found = open_checkpoint(trained), open_checkpoint(hub)
  assert (found.config, found.step) == (run.config, run.step)
  assert (found.module, found.class_names) == (run.module, run.class_names)
  jax.tree.map(np.testing.assert_array_equal, found.params, run.params)
  shardings = [
    jax.tree.map(lambda x: x.sharding, c.params) for c in (run, found)
  ]
  assert shardings[0] == shardings[1]
  np.testing.assert_array_equal(found.apply(FLOATS), run.apply(FLOATS))
  pairs = zip(found.predict(IMAGES), run.predict(IMAGES), strict=True)
  assert all(a.top(3) == b.top(3) for a, b in pairs)


def test_half_the_size_is_rounded_to_float16(trained, hub, tmp_path):
  half = tmp_path / "half"
  assert (
    main(["export", f"--workdir={trained}", f"--out={half}", "--half"]) == 0
  )
  sizes = [(f / "model.safetensors").stat().st_size for f in (half, hub)]
  arrays = [
    safetensors.numpy.load_file(f / "model.safetensors") for f in (half, hub)
  ]
  data = [sum(a.nbytes for a in found.values()) for found in arrays]
  assert data[0] == data[1] / 2 and sizes[0] < sizes[1]
  run, found = open_checkpoint(trained), open_checkpoint(half)
  rounded = jax.tree.map(lambda x: np.float16(x).astype(np.float32), run.params)
  jax.tree.map(np.testing.assert_array_equal, found.params, rounded)
  np.testing.assert_allclose(
    found.apply(FLOATS), run.apply(FLOATS), rtol=0.02, atol=0.02
  )


def test_a_value_beyond_float16_is_named(tmp_path):
  items = {"params": {"head": {"kernel": np.full(2, 7e4, np.float32)}}}
  with pytest.raises(ValueError, match="params/head/kernel: the value 70000"):
    exported.write(str(tmp_path / "out"), items, {"step": 1}, half=True)
  assert not (tmp_path / "out").exists()


def test_commands_take_it_for_a_workdir(evaluated, hub, tmp_path, capsys):
  out = tmp_path / "metrics.json"
  assert main(["evaluate", f"--workdir={hub}", f"--out={out}"]) == 0
  expected = json.loads((evaluated / "metrics.json").read_text())
  assert json.loads(out.read_text()) == expected and "test/accuracy" in expected
  image = tmp_path / "image.png"
  cv2.imwrite(str(image), IMAGES[0])
  assert main(["predict", f"--workdir={hub}", str(image)]) == 0
  assert "image.png" in capsys.readouterr().out
  words = ["--num-images=8", "--num-shown=1", "--capacities=1"]
  words.append(f"--out={tmp_path / 'page'}")
  assert main(["inspect", f"--workdir={hub}", *words]) == 0
  assert (tmp_path / "page" / "index.html").exists()
  again = tmp_path / "again.npz"
  assert main(["export", f"--workdir={hub}", f"--out={again}"]) == 0
  with np.load(again) as arrays:
    assert "head/kernel" in arrays


def test_a_run_starts_from_it(hub):
  model = Model(open_checkpoint(hub).config, (8, 8, 1))
  found = initial_params(InitializeSpec("checkpoint", str(hub)), model)
  expected = open_checkpoint(hub).params
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def flip(path, place):
  content = bytearray(path.read_bytes())
  content[int(place * len(content))] ^= 1
  path.write_bytes(content)


DAMAGE = {
  "an array": lambda folder: flip(folder / "model.safetensors", 0.99),
  "the header": lambda folder: flip(folder / "model.safetensors", 0.05),
  "its size": lambda folder: flip(folder / "model.safetensors", 0.0001),
  "nearly all": lambda folder: os.truncate(folder / "model.safetensors", 7),
  "the end": lambda folder: os.truncate(folder / "model.safetensors", 30_000),
  "the config": lambda folder: (folder / "config.json").write_text(
    (folder / "config.json").read_text().replace('"step": 32', '"step": 33')
  ),
  "no JSON": lambda folder: os.truncate(folder / "config.json", 100),
  "no config": lambda folder: (folder / "config.json").unlink(),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_file_is_an_error(hub, tmp_path, what, capsys):
  folder = shutil.copytree(hub, tmp_path / "hub")
  DAMAGE[what](folder)
  out = tmp_path / "params.npz"
  assert main(["export", f"--workdir={folder}", f"--out={out}"]) == 2
  error = capsys.readouterr().err
  assert "config.json" in error or "no intact checkpoint" in error
  assert not out.exists()


@pytest.mark.fuzz
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(max_size=20), st.integers(0, 4000), st.integers(0, 40))
def test_any_damage_of_the_header_is_noticed(hub, replacement, place, removed):
  content = (hub / "model.safetensors").read_bytes()
  damaged = content[:place] + replacement + content[place + removed :]
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder)
    shutil.copy(hub / "config.json", copy)
    (copy / "model.safetensors").write_bytes(damaged)
    if damaged == content:
      load_params(copy)
    else:
      with pytest.raises(CheckpointError):
        load_params(copy)


def test_shapes_are_those_of_the_config(hub):
  with pytest.raises(ValueError, match="differs from this model in"):
    open_checkpoint(hub, overrides=["model.fields.width=32"])
  with pytest.raises(CheckpointError, match=r"holds no step 5; .* are \[32\]"):
    open_checkpoint(hub, 5)


def test_its_data_folders_have_to_be_confirmed(
  hub, digits_folder, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(tfds_constants, "DATA_DIR", str(tmp_path))
  assert main(["evaluate", f"--workdir={hub}"]) == 2
  assert f"'{digits_folder}': the checkpoint's own" in capsys.readouterr().err
  quick = ["--trust-data-dirs", "--config.fewshot={}"]
  assert main(["evaluate", f"--workdir={hub}", *quick]) == 0


@pytest.mark.parametrize(
  ("command", "message"),
  [
    ("export", "must be a new or an empty folder"),
    ("train", "belongs to a run with another config"),
  ],
)
def test_nothing_is_written_into_it(trained, hub, command, message, capsys):
  before = {path.name: path.read_bytes() for path in hub.iterdir()}
  words = {
    "export": [f"--workdir={trained}", f"--out={hub}"],
    "train": [f"--workdir={hub}", "--config=configs/digits.py"],
  }
  assert main([command, *words[command]]) == 2
  assert message in capsys.readouterr().err
  assert before == {path.name: path.read_bytes() for path in hub.iterdir()}


@pytest.mark.slow  # Starts a server.
def test_in_a_bucket(hub, tmp_path):
  (tmp_path / "bucket").mkdir()
  with fake_gcs(tmp_path):
    folder = "gs://bucket/models/digits"
    assert main(["export", f"--workdir={hub}", f"--out={folder}"]) == 0
    found, local = open_checkpoint(folder), open_checkpoint(hub)
  jax.tree.map(np.testing.assert_array_equal, found.params, local.params)
  assert (found.config, found.step) == (local.config, local.step)


def checkpoint_of(router, group):
  """A model that has seen no image, with a head that tells them apart."""
  text = f"configs/digits.py:router={router},group={group}"
  fields = {"width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2}
  overrides = [f"model.fields.{name}={size}" for name, size in fields.items()]
  if router != "dense":
    overrides.append("model.moe.options.num_experts=4")
  config = load_config(text, overrides)
  model = Model(config, (8, 8, 1))
  params, state = model.init(), model.init_router_state()
  params["head"]["kernel"] = RNG.normal(0, 0.1, (16, 10)).astype(np.float32)
  state = jax.tree.map(lambda x: x + RNG.normal(size=x.shape), state)
  metadata = Metadata(config.to_dict(), model.image_shape)
  return Checkpoint(epath.Path("."), 3, params, state, model, metadata=metadata)


def test_states_of_routers_are_exported(tmp_path):
  checkpoint = checkpoint_of("bias_adjusted_token_choice", 1)
  assert jax.tree.leaves(checkpoint.router_state)
  export_model(checkpoint, str(tmp_path / "hub"))
  found = open_checkpoint(tmp_path / "hub")
  jax.tree.map(
    np.testing.assert_array_equal, found.variables, checkpoint.variables
  )


@pytest.mark.parametrize(
  ("router", "group"),
  [
    ("softmax_expert_choice", 4),
    ("bias_adjusted_token_choice", 2),
    ("dropless_token_choice", 1),  # Its code depends on the platform.
    ("dense", 1),
  ],
)
def test_programs_give_the_logits_of_the_model(router, group):
  checkpoint = checkpoint_of(router, group)
  program = make_program(checkpoint)
  assert program.platforms == PLATFORMS
  expected = checkpoint.apply(FLOATS)
  assert 0.1 < expected.std() < 1
  for count in (group, 8):
    logits = jax.jit(program.call)(IMAGES[:count])
    np.testing.assert_allclose(logits, expected[:count], rtol=0, atol=1e-6)
  if group > 1:
    with pytest.raises(ValueError, match=f"{group}\\*groups"):
      program.call(IMAGES[: group + 1])


# Runs where nothing but these libraries can be imported.
LIBRARIES = ("jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy")
LIBRARIES += ("flatbuffers", "safetensors")
ELSEWHERE = """
import importlib.util, sys
sys.path.append(sys.argv[1])
for name in ("vmoe_study", "flax", "orbax", "tensorflow_datasets", "cv2"):
  assert importlib.util.find_spec(name) is None, name
import jax
import numpy as np
import safetensors.numpy
arrays = safetensors.numpy.load_file("hub/model.safetensors")
content = open("model.stablehlo", "rb").read()
program = jax.export.deserialize(bytearray(content))
logits = program.call(np.load("images.npy"))
np.savez("found.npz", logits=logits, **arrays)
assert not [name for name in sys.modules if name.startswith("vmoe")]
"""


@pytest.mark.process
def test_without_this_package(trained, hub, tmp_path, capsys):
  program = tmp_path / "model.stablehlo"
  assert main(["export", f"--workdir={trained}", f"--out={program}"]) == 0
  _, takes, gives = capsys.readouterr().out.splitlines()
  assert "8,8,1], after value_range(-1, 1); " in takes
  assert gives == "gives float32[groups,10], 10 classes"
  (tmp_path / "hub").symlink_to(hub)
  np.save(tmp_path / "images.npy", IMAGES)
  libraries = tmp_path / "libraries"
  libraries.mkdir()
  for name in LIBRARIES:
    package = pathlib.Path(__import__(name).__file__).parent
    binaries = package.with_name(f"{name}.libs")
    for folder in filter(pathlib.Path.exists, (package, binaries)):
      (libraries / folder.name).symlink_to(folder)
  subprocess.run(
    [sys.executable, "-I", "-S", "-c", ELSEWHERE, str(libraries)],
    cwd=tmp_path,
    check=True,
  )
  checkpoint = open_checkpoint(trained)
  with np.load(tmp_path / "found.npz") as found:
    np.testing.assert_allclose(
      found["logits"], checkpoint.apply(FLOATS), rtol=0, atol=1e-6
    )
    for name, array in tree_lib.flatten({"params": checkpoint.params}).items():
      np.testing.assert_array_equal(found[name], array)
