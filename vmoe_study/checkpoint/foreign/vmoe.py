"""Reads the checkpoints of the public V-MoE code.

A checkpoint with prefix P has an index, `P.index`, and shards,
`P.data-00000-of-000NN`. The index holds the parameter tree. Each leaf gives the
shape and dtype of an array, how the array is cut into chunks, and which shard
holds each chunk. Leaves are numbered in the order of the tree with sorted keys.
A shard maps leaf numbers to lists of chunks. A chunk is a list of flat pieces,
in order, and the slice of the array that they fill. If the tree is a whole
training state, only its parameters are read.

Shards are checked against the index, and the index against the sizes of the
files, before memory is allocated. Reading takes as much memory as the files,
plus about three times the part of an array that one shard holds. The format has
no checksums; values are only checked to be finite.
"""

from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.checkpoint.foreign import vmoe_format as form
from vmoe_study.checkpoint.foreign.msgpack_reader import Reader
from vmoe_study.files.location import locate

_SHARD_MARK = "__msgpack_array_chunk_a87ca2__"
_VERSIONS = (None, "20220622")
_PARAMS = (("params",), ("optimizer", "target"))  # Of a training state.
_MAX_INDEX_BYTES = 16 << 20
_MAX_SHARDS = 100_000  # Five digits in a file name.

_Entries = dict[int, form.Entry]  # By the number of the leaf.
_Chunk = tuple[int, form.Box]  # The number of the leaf, and what it fills.


def read_vmoe(prefix: str) -> dict[str, Any]:
  """Reads the parameters of a public V-MoE checkpoint.

  Args:
    prefix: the index's path without ".index"; local, or a URL that fsspec opens
      (gs://, memory://, ...).

  Returns:
    Nested dictionaries of numpy arrays, with our parameter names.

  Raises:
    CheckpointError: a file is missing, damaged, or contradicts another one.
    ValueError: fsspec does not know this kind of URL.
  """
  files = _Files(prefix)
  shards, tree, entries, count = _open(files)
  arrays = {
    number: np.empty(entry.shape, entry.dtype)
    for number, entry in entries.items()
  }
  missing = _chunks_by_shard(entries)
  for number, shard in enumerate(shards):
    expected = missing.get(number, set())
    _read_shard(files, shard, expected, entries, arrays, count)
  return _rebuild(tree, iter(arrays.values()))


def read_vmoe_shapes(prefix: str) -> dict[str, Any]:
  """Like `read_vmoe`, with zeros that take no memory in place of the values.

  Reads only the index, and checks that the shards exist and are long enough.
  """
  _, tree, entries, _ = _open(_Files(prefix))
  arrays = (
    tree_lib.zeros_without_memory(entry.shape, entry.dtype)
    for entry in entries.values()
  )
  return _rebuild(tree, arrays)


class _Files:
  """The files of one checkpoint, on any file system."""

  def __init__(self, prefix: str):
    self._fs, path = locate(prefix)
    self.index = f"{path}.index"
    self._data = f"{path}.data"

  def shards(self, count: int) -> list[str]:
    """Paths of the data files."""
    return [f"{self._data}-{i:05d}-of-{count:05d}" for i in range(count)]

  def size(self, path: str) -> int:
    """Size in bytes; raises CheckpointError if there is no such file."""
    if not self._fs.isfile(path):
      raise CheckpointError(
        f"{path} does not exist: a checkpoint is an .index file and as many "
        ".data files as it says. Check the prefix, or fetch the file."
      )
    return self._fs.size(path)

  def open(self, path: str) -> BinaryIO:
    """Opens a file for reading."""
    return self._fs.open(path, "rb")


def _open(
  files: _Files,
) -> tuple[list[str], dict[str, Any], _Entries, int]:
  """Paths of the shards, the parameter tree, its leaves, the count of all."""
  shards, tree = _read_index(files)
  parents, params = _params(tree)
  leaves = list(_leaves(files.index, tree, ()))
  if parents:  # JAX counts no None of the rest of a training state.
    leaves = [leaf for leaf in leaves if leaf[1] is not None]
  entries = {
    number: form.read_entry(files.index, path.removeprefix(parents), leaf)
    for number, (path, leaf) in enumerate(leaves)
    if path.startswith(parents)
  }
  _check_entries(files, entries, shards)
  return shards, params, entries, len(leaves)


def _params(tree: dict[str, Any]) -> tuple[str, dict[str, Any]]:
  """The path and tree of the parameters of a training state, or all."""
  for path in _PARAMS:
    node: Any = tree
    for name in path:
      node = node.get(name) if isinstance(node, dict) else None
    if isinstance(node, dict):
      return "".join(f"{name}/" for name in path), node
  return "", tree


def _chunks_by_shard(entries: _Entries) -> dict[int, set[_Chunk]]:
  """The chunks that each shard must hold."""
  chunks: dict[int, set[_Chunk]] = {}
  for number, entry in entries.items():
    for box, shard in entry.shards.items():
      chunks.setdefault(shard, set()).add((number, box))
  return chunks


def _read_index(files: _Files) -> tuple[list[str], dict[str, Any]]:
  """Paths of the shards, and the parameter tree of packed entries."""
  size = files.size(files.index)
  if size > _MAX_INDEX_BYTES:
    raise form.error(
      files.index, f"{size} bytes; an index has at most {_MAX_INDEX_BYTES}"
    )
  with files.open(files.index) as stream:
    reader = Reader(stream, size, files.index)
    content = reader.value()
    reader.end()
  if not isinstance(content, dict) or not isinstance(
    content.get("index"), dict
  ):
    raise form.error(files.index, "there is no parameter tree under 'index'")
  if (version := content.get("version")) not in _VERSIONS:
    raise form.error(
      files.index, f"version={version!r}: must be one of {_VERSIONS}"
    )
  count: Any = content.get("shard_count")
  if not form.in_range(count, 1, _MAX_SHARDS):
    raise form.error(
      files.index, f"shard_count={count!r}: must be a number of shards"
    )
  return files.shards(count), content["index"]


def _leaves(
  file: str, tree: dict[str, Any], parents: tuple[str, ...]
) -> Iterator[tuple[str, Any]]:
  """Paths and leaves, in the order of their numbers."""
  for name in sorted(tree):
    if name in ("", ".", "..") or not name.isprintable() or "/" in name:
      raise form.error(file, f"{name[:40]!r} is not a parameter name")
    path = (*parents, name)
    if isinstance(tree[name], dict):
      yield from _leaves(file, tree[name], path)
    else:
      yield "/".join(path), tree[name]


def _rebuild(
  tree: dict[str, Any], arrays: Iterator[np.ndarray]
) -> dict[str, Any]:
  return {
    name: _rebuild(tree[name], arrays)
    if isinstance(tree[name], dict)
    else next(arrays)
    for name in sorted(tree)
  }


def _check_entries(files: _Files, entries: _Entries, shards: list[str]) -> None:
  """Checks that the arrays fit in the files and every chunk's shard exists."""
  available = sum(files.size(shard) for shard in shards)
  claimed = sum(entry.nbytes for entry in entries.values())
  if claimed > available:
    raise form.error(
      files.index,
      f"it claims {claimed} bytes of arrays, but its {len(shards)} data files "
      f"have {available}",
    )
  for entry in entries.values():
    for shard in entry.shards.values():
      if not form.in_range(shard, 0, len(shards)):
        raise form.error(
          files.index, f"{entry.path} is in shard {shard!r} of {len(shards)}"
        )


def _read_shard(
  files: _Files,
  path: str,
  missing: set[_Chunk],
  entries: _Entries,
  arrays: dict[int, np.ndarray],
  count: int,
) -> None:
  """Copies every chunk of a shard into its array, once."""
  marked = False
  with files.open(path) as stream:
    reader = Reader(stream, files.size(path), path)
    for key in reader.map_keys():
      value = reader.value()
      if key == _SHARD_MARK:
        marked = value is True
        continue
      leaf = _leaf_number(path, key, count)
      if leaf not in entries:  # Of the optimizer.
        continue
      where = f"{path}: {entries[leaf].path}"
      for chunk in form.sequence(where, value):
        box = _copy_chunk(where, chunk, arrays[leaf])
        if (leaf, box) not in missing:
          raise form.error(where, f"chunk {box} is unexpected or occurs twice")
        missing.remove((leaf, box))
    reader.end()
  if not marked:
    raise form.error(path, f"key {_SHARD_MARK!r} is missing")
  for leaf, box in sorted(missing):
    raise form.error(path, f"{entries[leaf].path}: chunk {box} is missing")


def _leaf_number(path: str, key: str, count: int) -> int:
  if not key.isdecimal() or len(key) > 9 or int(key) >= count:
    raise form.error(
      path, f"key {key[:40]!r} is not a leaf number below {count}"
    )
  return int(key)


def _copy_chunk(where: str, chunk: Any, array: np.ndarray) -> form.Box:
  """Joins the pieces of a chunk and copies them into the array."""
  packed, slices = form.sequence(where, chunk, 2)
  box = form.read_slices(where, slices, array.shape)
  pieces = form.read_pieces(where, packed)
  size = sum(piece.size for piece in pieces)
  if size != form.volume(box) or any(p.dtype != array.dtype for p in pieces):
    raise form.error(
      where,
      f"chunk {box} of {array.dtype} is filled with {size} elements of "
      f"{sorted({str(piece.dtype) for piece in pieces})}",
    )
  flat = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
  if not np.isfinite(flat).all():
    raise form.error(where, f"chunk {box} holds values that are not finite")
  shape = [stop - start for start, stop in box]
  array[tuple(slice(*bounds) for bounds in box)] = flat.reshape(shape)
  return box
