"""Reading and writing `.npz`: names, dtypes, damaged and hostile files."""

import io
import pickle
import tracemalloc
import warnings
import zipfile

import fsspec
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.foreign.npz import load_npz, save_npz

BLOCK = "Encoder/encoderblock_3"
HEAD_ATTENTION = "MapHead/MultiHeadDotProductAttention"
# Their name, our name.
AUGREG = {
  "embedding/kernel": "embedding/kernel",
  "cls": "cls",
  "Transformer/posembed_input/pos_embedding": (
    "Encoder/posembed_input/pos_embedding"
  ),
  "Transformer/encoderblock_3/LayerNorm_0/scale": f"{BLOCK}/LayerNorm_0/scale",
  "Transformer/encoderblock_3/LayerNorm_2/bias": f"{BLOCK}/LayerNorm_1/bias",
  "Transformer/encoderblock_3/MlpBlock_3/Dense_0/kernel": (
    f"{BLOCK}/Mlp/Dense_0/kernel"
  ),
  "Transformer/encoderblock_3/MultiHeadDotProductAttention_1/query/bias": (
    f"{BLOCK}/SelfAttention/query/bias"
  ),
  "Transformer/encoder_norm/scale": "Encoder/encoder_norm/scale",
  "pre_logits/kernel": "pre_logits/kernel",
  "head/bias": "head/bias",
}
BIG_VISION = {
  "params/embedding/bias": "embedding/bias",
  "params/pos_embedding": "Encoder/posembed_input/pos_embedding",
  "params/Transformer/encoderblock_3/LayerNorm_1/scale": (
    f"{BLOCK}/LayerNorm_1/scale"
  ),
  "params/Transformer/encoderblock_3/MlpBlock_0/Dense_1/bias": (
    f"{BLOCK}/Mlp/Dense_1/bias"
  ),
  "params/Transformer/encoderblock_3/MultiHeadDotProductAttention_0/out/bias": (
    f"{BLOCK}/SelfAttention/out/bias"
  ),
  "params/MAPHead_0/probe": "MapHead/probe",
  "params/MAPHead_0/LayerNorm_0/scale": "MapHead/LayerNorm/scale",
  "params/MAPHead_0/MlpBlock_0/Dense_0/bias": "MapHead/Mlp/Dense_0/bias",
  "params/MAPHead_0/MultiHeadDotProductAttention_0/key/bias": (
    f"{HEAD_ATTENTION}/key/bias"
  ),
  "params/head/kernel": "head/kernel",
}
BIG_VISION_STATE = {
  f"opt/target/{name.removeprefix('params/')}": own
  for name, own in BIG_VISION.items()
}
OLD = {
  "Transformer/pos_embedding": "Encoder/posembed_input/pos_embedding",
  "Transformer/encoder_norm/bias": "Encoder/encoder_norm/bias",
}
TREE = {
  "Encoder": {"encoderblock_1": {"Moe": {"kernel": np.ones((2, 3))}}},
  "half": np.arange(5, dtype=ml_dtypes.bfloat16),
  "file": np.arange(4, dtype=np.int32),
  "scale": np.float32(2.0).reshape(()),
}


def _npz(**members):
  """An archive of the given contents."""
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return stream.getvalue()


def _npz_of_two():
  """An archive with two members of one name."""
  stream = io.BytesIO()
  with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
    warnings.simplefilter("ignore")
    for _ in range(2):
      archive.writestr("a.npy", _npy(np.ones(3)))
  return stream.getvalue()


def _npy(array, **options):
  stream = io.BytesIO()
  np.lib.format.write_array(stream, array, **options)
  return stream.getvalue()


def _header(shape, descr="<f4"):
  stream = io.BytesIO()
  header = {"descr": descr, "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(stream, header)
  return stream.getvalue()


@pytest.mark.parametrize("names", [AUGREG, BIG_VISION, BIG_VISION_STATE, OLD])
def test_names_of_others_become_ours(tmp_path, names):
  arrays = {name: np.full((2,), i) for i, name in enumerate(names)}
  np.savez(tmp_path / "vit.npz", **arrays)
  loaded = tree_lib.flatten(load_npz(str(tmp_path / "vit.npz")))
  assert set(loaded) == set(names.values())
  for name, own in names.items():
    np.testing.assert_array_equal(loaded[own], arrays[name])


def _load(path, **arrays):
  np.savez(path, **arrays)
  return tree_lib.flatten(load_npz(str(path)))


def test_the_state_of_an_optimizer_is_left_out(tmp_path):
  path, ones = tmp_path / "vit.npz", np.ones(2)
  arrays = {"params/cls": ones, "opt/1/0/mu/cls": ones, "opt/0": ones}
  assert _load(path, **arrays).keys() == {"cls"}


def test_a_record_of_time_is_left_out(tmp_path):
  path, one = tmp_path / "vit.npz", np.float64(1)
  arrays = {"params/cls": np.ones(2), "chrono/accum_train_time": one}
  assert _load(path, **arrays).keys() == {"cls"}


def test_a_map_head_at_the_top_level(tmp_path):
  inlined = {
    name.replace("MAPHead_0/", ""): own for name, own in BIG_VISION.items()
  }
  arrays = {name: np.full(2, i) for i, name in enumerate(inlined)}
  loaded = _load(tmp_path / "vit.npz", **arrays)
  assert loaded.keys() == set(BIG_VISION.values())
  for name, own in inlined.items():
    np.testing.assert_array_equal(loaded[own], arrays[name])


@pytest.mark.parametrize("state", ["", "params/", "opt/target/"])
def test_of_two_towers_that_of_images_is_read(tmp_path, state):
  tower = {
    name.removeprefix("params/"): own for name, own in BIG_VISION.items()
  }
  arrays = {f"{state}img/{name}": np.ones(2) for name in tower}
  rest = ("txt/head/kernel", "txt/Embed_0/embedding", "t", "b")
  arrays |= {state + name: np.ones(2) for name in rest}
  loaded = _load(tmp_path / "vit.npz", **arrays)
  # Its head is no classifier.
  assert loaded.keys() == set(tower.values()) - {"head/kernel"}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("shapes_only", [False, True])
@pytest.mark.parametrize("shape", [(10**9, 0), (0, 3), (60_000_000, 1)])
@pytest.mark.parametrize(
  "name", ["w", "params/Transformer/encoderblock/LayerNorm_0/scale"]
)
def test_shapes_take_no_time(tmp_path, name, shape, shapes_only):
  path = tmp_path / "vit.npz"
  size = 0 if 0 in shape else shape[0]
  content = _header(shape, "|u1") + bytes(size)
  path.write_bytes(_npz(**{f"{name}.npy": content}))
  if size and name == "w":
    assert load_npz(str(path), shapes_only)["w"].shape == shape
  else:
    with pytest.raises(CheckpointError, match=r"claims uint8|stacks 60000000"):
      load_npz(str(path), shapes_only)


def test_stacked_blocks_are_told_apart(tmp_path):
  stacked = np.arange(24.0).reshape(3, 4, 2)
  prefix = "params/Transformer/encoderblock"
  arrays = {
    f"{prefix}/MlpBlock_0/Dense_0/kernel": stacked,
    f"{prefix}/MultiHeadDotProductAttention_0/query/bias": stacked,
    f"{prefix}/LayerNorm_1/scale": stacked[:, 0],
  }
  loaded = _load(tmp_path / "vit.npz", **arrays)
  assert len(loaded) == 9
  for i in range(3):
    block = f"Encoder/encoderblock_{i}"
    for name in ("Mlp/Dense_0/kernel", "SelfAttention/query/bias"):
      np.testing.assert_array_equal(loaded[f"{block}/{name}"], stacked[i])
    scale = loaded[f"{block}/LayerNorm_1/scale"]
    np.testing.assert_array_equal(scale, stacked[i, 0])


def test_a_class_token_added_after_the_positions_has_none(tmp_path):
  positions = np.random.default_rng(0).normal(size=(1, 9, 4))
  path, ours = tmp_path / "vit.npz", "Encoder/posembed_input/pos_embedding"
  cls = np.ones((1, 1, 4))
  found = _load(path, cls=cls, pos_embedding=positions)[ours]
  np.testing.assert_array_equal(found[:, 1:], positions)
  assert found.shape == (1, 10, 4) and not np.any(found[:, 0])
  # One that has a position, no class token, or our own names: as they are.
  for arrays in (
    {"cls": cls, "pos_embedding": positions.repeat(2, 1)[:, :10]},
    {"pos_embedding": positions},
    {"cls": cls, ours: positions},
  ):
    positions_of_file = list(arrays.values())[-1]
    found = _load(path, **arrays)[ours]
    np.testing.assert_array_equal(found, positions_of_file)


@pytest.mark.parametrize("where", ["local", "memory"])
def test_round_trip(tmp_path, where):
  folder = str(tmp_path) if where == "local" else "memory://bucket"
  path = f"{folder}/new/folder/params.npz"
  save_npz(path, TREE)
  loaded, expected = load_npz(path), tree_lib.flatten(TREE)
  loaded = tree_lib.flatten(loaded)
  assert loaded.keys() == expected.keys()
  for name, values in expected.items():
    assert loaded[name].dtype == values.dtype
    np.testing.assert_array_equal(loaded[name], values)


def test_numpy_reads_what_we_write(tmp_path):
  save_npz(str(tmp_path / "params.npz"), TREE)
  with np.load(tmp_path / "params.npz") as arrays:
    np.testing.assert_array_equal(arrays["file"], TREE["file"])
    name = "Encoder/encoderblock_1/Moe/kernel"
    np.testing.assert_array_equal(arrays[name], np.ones((2, 3)))


def test_a_failed_write_leaves_the_old_file(tmp_path):
  path = tmp_path / "params.npz"
  save_npz(str(path), TREE)
  before = path.read_bytes()
  with pytest.raises(ValueError, match="Object arrays"):
    save_npz(str(path), {"a": np.ones(3), "b": np.array([object()])})
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["params.npz"]


class _Malicious:
  executed = False

  def __reduce__(self):
    return setattr, (_Malicious, "executed", True)


ONE = _npy(np.ones(3, np.float32))


@pytest.mark.parametrize(
  "content,message",
  [
    (b"", "not a zip file"),
    (pickle.dumps([1]), "not a zip file"),
    (_npz(**{"a.npy": ONE})[:-30], "not a zip file"),
    (_npz(**{"a.txt": "x"}), "'a.txt' is not an array"),
    (_npz(**{"../../a.npy": ONE}), "must be names joined"),
    (_npz(**{"/etc/a.npy": ONE}), "must be names joined"),
    (_npz(**{"a.npy": ONE, "a/b.npy": ONE}), "the parent of another"),
    (_npz(**{"cls.npy": ONE, "params/cls.npy": ONE}), "two arrays .* cls"),
    (_npz_of_two(), "two arrays"),
    (_npz(**{"a.npy": b"\x80\x04N."}), "magic string"),
    (_npz(**{"a.npy": _header((2**60, 2**60))}), "claims float32.*bytes"),
    (_npz(**{"a.npy": _header((-1,))}), "claims float32"),
    (_npz(**{"a.npy": _header((4,)) + b"\0" * 15}), "claims float32"),
    (_npz(**{"a.npy": _header((1,), "|O") + b"\0" * 8}), "has dtype object"),
    (_npz(**{"a.npy": _header((1,), "|S4") + b"\0" * 4}), "has dtype .S4"),
    (_npz(**{"a.npy": _npy(np.array([_Malicious()]), allow_pickle=True)}),
     "has dtype object"),
    (_npz(**{"a.npy": b"\0" * (80 << 20)}), "more than 100 times"),
  ],
)  # fmt: skip
def test_hostile_files_are_refused(tmp_path, content, message):
  path = tmp_path / "hostile.npz"
  path.write_bytes(content)
  tracemalloc.start()
  try:
    with pytest.raises(CheckpointError, match=message) as caught:
      load_npz(str(path))
    assert tracemalloc.get_traced_memory()[1] < 10e6
  finally:
    tracemalloc.stop()
  assert str(path) in str(caught.value)
  assert not _Malicious.executed


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(CheckpointError, match=r"none\.npz"):
    load_npz(str(tmp_path / "none.npz"))


def test_an_unknown_kind_of_url_is_explained():
  with pytest.raises(ValueError, match="nowhere://x.*Give a local path"):
    load_npz("nowhere://x")
  with pytest.raises(ValueError, match="nowhere://x.*Give a local path"):
    save_npz("nowhere://x", TREE)


@pytest.mark.fuzz
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_changed_files_give_the_same_arrays_or_our_error(data):
  memory = fsspec.filesystem("memory")
  save_npz("memory://fuzz/params.npz", TREE)
  content = bytearray(memory.cat("/fuzz/params.npz"))
  position = data.draw(st.integers(0, len(content) - 1))
  content[position] ^= 1 << data.draw(st.integers(0, 7))
  memory.pipe("/fuzz/params.npz", bytes(content))
  try:
    loaded = tree_lib.flatten(load_npz("memory://fuzz/params.npz"))
  except CheckpointError:
    return
  values = [loaded[name] for name in sorted(loaded)]
  expected = tree_lib.flatten(TREE)
  for array, name in zip(values, sorted(expected), strict=True):
    np.testing.assert_array_equal(array, expected[name])
