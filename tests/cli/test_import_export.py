"""`import-vmoe` and `export` from the command line, on published weights."""

import pathlib

import fsspec
import jax
import numpy as np
import pytest

from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.checkpoint.foreign.architecture import infer_model
from vmoe_study.checkpoint.foreign.npz import load_npz
from vmoe_study.checkpoint.load import load_params
from vmoe_study.cli.main import main
from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.spec import ModelSpec
from vmoe_study.nn.vit import VisionTransformer
from vmoe_study.run import workdir as workdir_lib

from ..checkpoint.foreign import vmoe_writer as writer

REFERENCE = pathlib.Path(__file__).parents[1] / "data" / "reference"
SAMPLES = REFERENCE / "vmoe_checkpoint"


@pytest.fixture(scope="module")
def published():
  with np.load(REFERENCE / "vit_moe.npz") as arrays:
    return dict(arrays)


@pytest.fixture(scope="module", params=["vmoe_v0", "vmoe_v1"])
def imported(request, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("import")
  prefix = SAMPLES / request.param
  assert main(["import-vmoe", f"--prefix={prefix}", f"--out={workdir}"]) == 0
  return workdir


def test_imported_model_gives_the_published_logits(imported, published):
  params, record, step = load_params(workdir_lib.checkpoints(imported))
  assert step == 0 and record["image_shape"] == [32, 32, 3]
  model = record["config"]["model"]
  spec = ModelSpec(fields=model["fields"], moe=MoeOptions(**model["moe"]))
  module = VisionTransformer(**spec.arguments())
  logits, outputs = jax.jit(module.apply)(
    {"params": params}, published["images"]
  )
  case = "softmax_tc_k1/gap_group_image"
  np.testing.assert_allclose(logits, published[f"{case}/logits"], atol=1e-5)
  np.testing.assert_allclose(
    outputs.features, published[f"{case}/features_prelogits"], atol=1e-5
  )


def test_export_holds_every_parameter(imported, published, tmp_path):
  out = tmp_path / "params.npz"
  assert main(["export", f"--workdir={imported}", f"--out={out}"]) == 0
  exported = tree_lib.flatten(load_npz(str(out)))
  for path, values in exported.items():
    router = "_dense_router" if "/Router/" in path else ""
    np.testing.assert_array_equal(values, published[f"params{router}/{path}"])
  assert len(exported) == 73


def test_errors_are_one_paragraph_and_change_nothing(tmp_path, capsys):
  prefix, out = SAMPLES / "vmoe_v2", tmp_path / "out"
  assert main(["import-vmoe", f"--prefix={prefix}", f"--out={out}"]) == 2
  assert "vmoe_v2.index does not exist" in capsys.readouterr().err
  assert not out.exists()
  assert main(["export", f"--workdir={out}", "--out=params.npz"]) == 2
  assert "holds no checkpoint" in capsys.readouterr().err
  assert main(["export", f"--workdir={out}", "--out=params.h5"]) == 2
  assert "must be a folder, or end in .stable" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.npz", "x.stablehlo"])
def test_only_folders_are_stored_as_float16(name, tmp_path, capsys):
  out = f"--out={tmp_path / name}"
  assert main(["export", f"--workdir={tmp_path}", out, "--half"]) == 2
  assert "--half: must go with a folder" in capsys.readouterr().err


CONFIG = """
from ml_collections import config_dict

def get_config(num_experts="4"):
  options = {"num_experts": int(num_experts), "capacity_factor": 2.0}
  moe = {"router": "softmax_expert_choice", "options": options}
  fields = {"num_classes": 10, "patch_size": 8, "width": 32, "depth": 4,
            "mlp_dim": 64, "num_heads": 4}
  data = {"name": "digits", "split": "train", "num_classes": 10,
          "ops": "value_range(-1, 1)"}
  return config_dict.ConfigDict({
    "name": "other", "model": {"fields": fields, "moe": moe}, "data": data,
    "train": {"batch_size": 8, "num_steps": 1}})
"""


def test_a_config_says_what_the_shapes_do_not(tmp_path, capsys):
  (tmp_path / "config.py").write_text(CONFIG)
  arguments = [
    "import-vmoe",
    f"--prefix={SAMPLES / 'vmoe_v1'}",
    f"--out={tmp_path / 'out'}",
    f"--config={tmp_path / 'config.py'}",
  ]
  wrong = [*arguments[:-1], f"{arguments[-1]}:8"]
  assert main(wrong) == 2
  message = capsys.readouterr().err
  assert "10 of another shape: Encoder/encoderblock_1/Moe/Mlp" in message
  assert not (tmp_path / "out").exists()

  assert main(arguments) == 0
  _, record, _ = load_params(workdir_lib.checkpoints(tmp_path / "out"))
  model = record["config"]["model"]
  assert model["moe"]["options"]["capacity_factor"] == 2.0


def _zeros(published, *kinds):
  leaves = {}
  for name, values in published.items():
    kind, _, path = name.partition("/")
    if kind in kinds:
      leaves[path] = np.zeros(values.shape)
  return tree_lib.unflatten(leaves)


@pytest.mark.parametrize(
  "kind,expected",
  [
    ("params_soft_router", {"router": "soft"}),
    ("params_token_variant", {"pool": "token"}),
    ("params_map_variant", {"pool": "map"}),
    ("params_qknorm_variant", {"qk_norm": True}),
  ],
)
def test_architecture_is_inferred_from_shapes(published, kind, expected):
  model = infer_model(_zeros(published, "params", kind))
  found = model["fields"] | model["moe"]
  assert expected.items() <= found.items()
  assert (found["width"], found["depth"], found["mlp_dim"]) == (32, 4, 64)
  assert (found["num_heads"], found["patch_size"]) == (4, 8)
  assert found["blocks"] == [1, 3]
  slots = {"slots_per_expert": 4} if kind == "params_soft_router" else {}
  assert found["options"] == {"num_experts": 4} | slots


BIAS = "Moe/Mlp/Dense_0/bias"


@pytest.mark.parametrize(
  "path,shape,message",
  [
    ("embedding/kernel", None, "embedding/kernel, with 4 axes, is missing"),
    ("embedding/kernel", (3, 3), "has the shape (3, 3)"),
    ("head/kernel", None, "head/kernel, with 2 axes, is missing"),
    (f"Encoder/encoderblock_1/{BIAS}", None, f"{BIAS}, with 2 axes, is mis"),
    ("Encoder/encoderblock_5/Mlp/Dense_0/bias", (2,), "blocks are [0, 1, 2, 3"),
    (
      "Encoder/posembed_input/pos_embedding",
      (1, 15, 32),
      "15 positions of patches",
    ),
    ("extra/kernel", (2, 2), "1 not used: extra/kernel"),
    ("head/bias", (3,), "head/bias (shape (3,), the model has (10,))"),
  ],
)
def test_other_trees_are_refused(
  published, tmp_path, capsys, path, shape, message
):
  leaves = tree_lib.flatten(_zeros(published, "params", "params_dense_router"))
  leaves.pop(path, None)
  if shape:
    leaves[path] = np.zeros(shape)
  assert _import(tmp_path, leaves) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_fixed_positions_do_not_tell_the_image_size(
  published, tmp_path, capsys
):
  leaves = tree_lib.flatten(_zeros(published, "params", "params_dense_router"))
  learned = dict(leaves)
  del leaves["Encoder/posembed_input/pos_embedding"]
  assert _import(tmp_path, leaves) == 2
  assert "Give --image-size=PIXELS" in capsys.readouterr().err
  assert _import(tmp_path, leaves, "--image-size=24") == 0
  _, record, _ = load_params(workdir_lib.checkpoints(tmp_path / "out"))
  assert record["image_shape"] == [24, 24, 3]
  assert record["config"]["model"]["fields"]["posemb"] == "sincos2d"
  assert _import(tmp_path, learned, "--image-size=24") == 2
  assert "image_size=24: must be 32" in capsys.readouterr().err


def _import(folder, leaves, *arguments):
  prefix, files = folder / "vmoe", fsspec.filesystem("file")
  writer.write(files, str(prefix), tree_lib.unflatten(leaves))
  out = f"--out={folder / 'out'}"
  return main(["import-vmoe", f"--prefix={prefix}", out, *arguments])
