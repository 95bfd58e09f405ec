"""Public V-MoE checkpoints: samples, any chunking, and hostile files."""

import pathlib
import tracemalloc

import fsspec
import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.foreign import vmoe_format as form
from vmoe_study.checkpoint.foreign.vmoe import read_vmoe, read_vmoe_shapes

from . import vmoe_writer as writer

pytestmark = pytest.mark.slow

REFERENCE = pathlib.Path(__file__).parents[2] / "data" / "reference"

PREFIX = "memory://bucket/vmoe"
TREE = {
  "Encoder": {
    "Moe": {"kernel": np.arange(24.0, dtype=np.float32).reshape(4, 3, 2)},
    "bias": np.arange(3, dtype=ml_dtypes.bfloat16),
  },
  "head": {"kernel": np.arange(10, dtype=np.int32).reshape(5, 2)},
  "scale": np.float32(1.5).reshape(()),
}


@pytest.fixture(autouse=True)
def memory():
  """An empty file system that is not local."""
  fs = fsspec.filesystem("memory")
  fs.store.clear()
  fs.pseudo_dirs[:] = [""]
  yield fs
  fs.store.clear()


def _assert_same(tree, expected):
  tree, expected = tree_lib.flatten(tree), tree_lib.flatten(expected)
  assert tree.keys() == expected.keys()
  for path, values in expected.items():
    assert tree[path].dtype == values.dtype
    np.testing.assert_array_equal(tree[path], values, err_msg=path)


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_samples_hold_the_published_weights(version):
  expected = {}
  with np.load(REFERENCE / "vit_moe.npz") as arrays:
    for name in arrays.files:
      kind, _, path = name.partition("/")
      if kind in ("params", "params_dense_router"):
        expected[path] = arrays[name]
  tree = read_vmoe(str(REFERENCE / "vmoe_checkpoint" / f"vmoe_{version}"))
  _assert_same(tree, tree_lib.unflatten(expected))


@pytest.mark.parametrize("flax_map", [False, True])
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("shard_count,chunks", [(1, 1), (3, 2), (2, 4)])
def test_any_chunking_elsewhere(memory, shard_count, chunks, pieces, flax_map):
  writer.write(
    memory,
    "/bucket/vmoe",
    TREE,
    shard_count=shard_count,
    chunks=chunks,
    pieces=pieces,
    flax_map=flax_map,
  )
  _assert_same(read_vmoe(PREFIX), TREE)


@pytest.mark.parametrize("parents", [("params",), ("optimizer", "target")])
def test_of_a_training_state_the_parameters_are_read(memory, parents):
  moments = {"0": {"count": np.int32(3).reshape(()), "mu": TREE, "nu": TREE}}
  state = {"opt_state": moments, "step": np.full((), 7, np.int32)}
  node = state
  for name in parents[:-1]:
    node = node.setdefault(name, {"state": TREE})
  node[parents[-1]] = TREE
  # Random keys are never finite floats; states of others are not checked.
  state["rngs"] = {"dropout": np.full(2, np.nan, np.float32)}
  index, data = writer.build(state, 3, 2)
  index["index"]["aaa"] = None  # An empty part, which has no number.
  _store(memory, index, data)
  _assert_same(read_vmoe(PREFIX), TREE)
  shapes = jax.tree.map(np.shape, read_vmoe_shapes(PREFIX))
  assert shapes == jax.tree.map(np.shape, TREE)


def _entry_of(shape, boxes):
  """The entry of an array of bytes."""
  form = writer.packed((shape, "uint8", False, {}))
  items = [writer.packed(writer.slices(box)) for box in boxes]
  return writer.ext(8, (form, items, [0] * len(boxes)))


@pytest.mark.parametrize("rank", [1, 2, 3, 8])
def test_tilings_are_told_from_overlaps(rank):
  """Random cuts of a box, and the same with one piece moved."""
  rng = np.random.default_rng(rank)
  shape = (12,) * rank

  def cut(box, depth):
    axis = int(rng.integers(rank))
    start, stop = box[axis]
    if not depth or stop - start < 2:
      return [box]
    at = int(rng.integers(start + 1, stop))
    parts = ((start, at), (at, stop))
    parts = [(*box[:axis], part, *box[axis + 1 :]) for part in parts]
    return [piece for part in parts for piece in cut(part, depth - 1)]

  for _ in range(20):
    boxes = cut(((0, 12),) * rank, 4)
    assert len(form.read_entry("f", "a", _entry_of(shape, boxes)).shards)
    for i, box in enumerate(boxes):
      for axis, (start, stop) in enumerate(box):
        for step in (-1, 1):
          if start + step >= 0 and stop + step <= 12:
            moved = (start + step, stop + step)
            box_moved = (*box[:axis], moved, *box[axis + 1 :])
            changed = [*boxes[:i], box_moved, *boxes[i + 1 :]]
            with pytest.raises(CheckpointError, match="overlaps"):
              form.read_entry("f", "a", _entry_of(shape, changed))


@pytest.mark.timeout(20)
def test_many_chunks_take_little_time():
  boxes = [((i, i + 1), (0, 2)) for i in range(4096)]
  entry = _entry_of((4096, 2), boxes)
  for _ in range(20):
    assert len(form.read_entry("f", "a", entry).shards) == 4096


def _store(memory, index, data):
  memory.pipe("/bucket/vmoe.index", msgpack.packb(index))
  for i, content in enumerate(data):
    name = f"/bucket/vmoe.data-{i:05d}-of-{len(data):05d}"
    memory.pipe(name, msgpack.packb(content))


def _rewrite(shape=None, dtype=None, boxes=None, shards=None):
  """Another entry for the kernel with 4 chunks of shape (1, 3, 2)."""
  values = TREE["Encoder"]["Moe"]["kernel"]
  form = writer.packed(
    (shape or values.shape, dtype or values.dtype.name, False, {})
  )
  boxes = writer.rows(values, 4) if boxes is None else boxes
  shards = [0, 1, 0, 1] if shards is None else shards
  return writer.ext(
    8, (form, [writer.packed(writer.slices(b)) for b in boxes], shards)
  )


REST = ((0, 3), (0, 2))


@pytest.mark.parametrize(
  "changes,message",
  [
    ({"shape": (2**40, 3, 2)}, "24 elements, shape .* has"),
    ({"shape": (2**62, 2**62), "boxes": [((0, 2**62),) * 2], "shards": [0]},
     "claims .* bytes of arrays, but"),
    ({"shape": (-4, 3, 2)}, "is not the shape"),
    ({"shape": (1,) * 9}, "is not the shape"),
    ({"shape": ("4", 3, 2)}, "is not the shape"),
    ({"dtype": "object"}, "dtype 'object'"),
    ({"dtype": "O"}, "dtype 'O'"),
    ({"boxes": [((0, 4), *REST), ((0, 4), *REST)], "shards": [0, 1]},
     "48 elements"),
    ({"boxes": [((0, 2), *REST), ((1, 3), *REST)], "shards": [0, 1]},
     "overlaps another chunk"),
    ({"boxes": [((0, 2), *REST)], "shards": [0]}, "12 elements"),
    ({"boxes": [((0, 5), *REST)], "shards": [0]}, "0:5:None is not a slice"),
    ({"boxes": [((-1, 4), *REST)], "shards": [0]}, "-1:4:None is not a slice"),
    ({"boxes": [((0, 4), (0, 3))], "shards": [0]}, "not a list of 3"),
    ({"shards": [0, 1, 0]}, "4 chunks with 3 shards"),
    ({"shards": [0, 1, 0, 2]}, "in shard 2 of 2"),
    ({"shards": [0, 1, 0, "../1"]}, "in shard '../1' of 2"),
    ({"shards": [1, 1, 0, 1]}, "unexpected or occurs twice"),
  ],
)  # fmt: skip
def test_hostile_entries_are_refused(memory, changes, message):
  index, data = writer.build(TREE, 2, 4)
  index["index"]["Encoder"]["Moe"]["kernel"] = _rewrite(**changes)
  _store(memory, index, data)
  tracemalloc.start()
  try:
    with pytest.raises(CheckpointError, match=message) as caught:
      read_vmoe(PREFIX)
    assert tracemalloc.get_traced_memory()[1] < 10e6
  finally:
    tracemalloc.stop()
  assert "/bucket/vmoe." in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "..", "../../etc", "a/b", "a\0b"])
def test_names_that_are_paths_are_refused(memory, name):
  _store(memory, *writer.build({name: TREE["head"]}, 1, 1))
  with pytest.raises(CheckpointError, match="is not a parameter name"):
    read_vmoe(PREFIX)


def _shard(change):
  """Shards with a change made to the list of chunks of leaf 0."""

  def apply(index, data):
    del index
    change(data[0]["0"], data)

  return apply


def _set(position, value):
  def change(chunks, data):
    del data
    chunks[0][position] = value

  return _shard(change)


@pytest.mark.parametrize(
  "damage,message",
  [
    (lambda index, data: index.update(shard_count=0), "shard_count=0:"),
    (lambda index, data: index.update(shard_count=10**9), "count=1000000000:"),
    (lambda index, data: index.update(shard_count=True), "shard_count=True:"),
    (lambda index, data: index.update(version="20300101"), "='20300101'"),
    (lambda index, data: index.update(version=["1"]), "version=.*must be"),
    (lambda index, data: index.update(index=[]), "no parameter tree"),
    (lambda index, data: index.update(index={"a": 1}), "type 8 was expected"),
    (lambda index, data: index.update(index={"a": None}), "type 8 was"),
    (lambda index, data: data[0].pop("0"), "chunk .* is missing"),
    (lambda index, data: data[0].update({"99": []}), "not a leaf number"),
    (lambda index, data: data[0].update({"-1": []}), "not a leaf number"),
    (lambda index, data: data[0].pop("__msgpack_array_chunk_a87ca2__"),
     "key '__msgpack.*missing"),
    (_shard(lambda chunks, data: chunks.append(chunks[0])), "twice"),
    (_shard(lambda chunks, data: data[1]["0"].append(chunks[0])), "twice"),
    (_set(0, []), "filled with 0 elements"),
    (_set(0, [writer.array(np.zeros(5, np.float32))]), "with 5 elements"),
    (_set(0, [writer.array(np.zeros(6, np.float64))]), r"of \['float64'\]"),
    (_set(0, [writer.array(np.full(6, np.nan, np.float32))]), "not finite"),
    (_set(0, [writer.ext(1, ((6,), "float32", b"\xff" * 24))]), "not finite"),
    (_set(0, [writer.ext(1, ((6,), "float32", b"\0" * 20))]), "does not fit"),
    (_set(0, [writer.ext(1, ((6,), "object", b"\0" * 48))]), "dtype 'object'"),
    (_set(0, [writer.ext(1, ((2**40, 2**40), "float32", b""))]), "not fit"),
    (_set(0, [msgpack.ExtType(1, b"\xdd\xff\xff\xff\xff")]), "exceeds max"),
    (_set(0, [msgpack.ExtType(3, b"\x01")]), "type 1 was expected"),
    (_set(0, ["text"]), "type 1 was expected"),
    (_set(1, [0, 1]), "type 6 was expected"),
    (_set(0, [{"__msgpack_chunked_array__": True, "chunks": {"1": 0}}]),
     "not 0, 1"),
  ],
)  # fmt: skip
def test_hostile_contents_are_refused(memory, damage, message):
  index, data = writer.build(TREE, 2, 4)
  damage(index, data)
  _store(memory, index, data)
  with pytest.raises(CheckpointError, match=message) as caught:
    read_vmoe(PREFIX)
  assert "/bucket/vmoe." in str(caught.value)


def test_missing_files_are_named(memory):
  with pytest.raises(CheckpointError, match=r"vmoe\.index does not exist"):
    read_vmoe(PREFIX)
  writer.write(memory, "/bucket/vmoe", TREE)
  memory.rm("/bucket/vmoe.data-00001-of-00002")
  with pytest.raises(CheckpointError, match="00001-of-00002 does not exist"):
    read_vmoe(PREFIX)
  with pytest.raises(ValueError, match=r"nowhere://x.: .*Give a l"):
    read_vmoe("nowhere://x")


@pytest.mark.fuzz
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2), st.data())
def test_changed_files_give_the_tree_or_our_error(which, data):
  """There are no checksums, but shapes, dtypes and names hold."""
  memory = fsspec.filesystem("memory")
  writer.write(memory, "/bucket/vmoe", TREE, chunks=4)
  name = sorted(memory.ls("/bucket", detail=False))[which]
  content = bytearray(memory.cat(name))
  for _ in range(data.draw(st.integers(1, 3))):
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
  if data.draw(st.booleans()):
    content = content[: data.draw(st.integers(0, len(content)))]
  memory.pipe(name, bytes(content))
  try:
    arrays = tree_lib.flatten(read_vmoe(PREFIX)).values()
  except CheckpointError:
    return
  assert sum(values.nbytes for values in arrays) < 1000
