"""Writes checkpoints in the format of the public V-MoE code, for tests."""

import itertools

import msgpack
import numpy as np


def packed(value):
  return msgpack.packb(value)


def ext(code, value):
  return msgpack.ExtType(code, packed(value))


def array(values):
  values = np.ascontiguousarray(values)
  return ext(1, (values.shape, values.dtype.name, values.tobytes()))


def slices(box):
  return tuple(packed((start, stop, None)) for start, stop in box)


def chunked_map(values, pieces=2):
  """As Flax writes an array that is too large for one value."""
  parts = np.array_split(values.reshape(-1), min(pieces, values.size))
  return {
    "__msgpack_chunked_array__": True,
    "shape": {str(i): n for i, n in enumerate(values.shape)},
    "chunks": {str(i): array(part) for i, part in enumerate(parts)},
  }


def leaves(tree):
  for name in sorted(tree):
    if isinstance(tree[name], dict):
      yield from leaves(tree[name])
    else:
      yield tree[name]


def entry(values, boxes, shards):
  form = packed((values.shape, values.dtype.name, False, {}))
  return ext(8, (form, [packed(slices(box)) for box in boxes], shards))


def rows(values, count):
  """Boxes that cut the first axis into `count` chunks."""
  if values.ndim == 0:
    return [()]
  cuts = np.linspace(0, len(values), count + 1).astype(int)
  rest = tuple((0, n) for n in values.shape[1:])
  bounds = [(int(a), int(b)) for a, b in itertools.pairwise(cuts)]
  return [((a, b), *rest) for a, b in bounds if a < b]


def write(
  fs, prefix, tree, *, shard_count=2, chunks=2, pieces=1, flax_map=False
):
  """Writes a tree; chunk j of leaf i goes to shard (i + j) % shard_count."""
  index, data = build(tree, shard_count, chunks, pieces, flax_map)
  fs.pipe(f"{prefix}.index", packed(index))
  for i, content in enumerate(data):
    fs.pipe(f"{prefix}.data-{i:05d}-of-{shard_count:05d}", packed(content))


def build(tree, shard_count, chunks, pieces=1, flax_map=False):
  """The contents of the index and of each shard."""
  data = [{"__msgpack_array_chunk_a87ca2__": True} for _ in range(shard_count)]
  entries = []
  for i, values in enumerate(leaves(tree)):
    boxes = rows(values, chunks)
    shards = [(i + j) % shard_count for j in range(len(boxes))]
    entries.append(entry(values, boxes, shards))
    for box, shard in zip(boxes, shards, strict=True):
      chunk = values[tuple(slice(*bounds) for bounds in box)].reshape(-1)
      parts = [p for p in np.array_split(chunk, pieces) if p.size]
      write_part = chunked_map if flax_map else array
      item = [[write_part(part) for part in parts], ext(6, slices(box))]
      data[shard].setdefault(str(i), []).append(item)
  remaining = iter(entries)

  def replace(node):
    return {
      name: replace(node[name])
      if isinstance(node[name], dict)
      else next(remaining)
      for name in sorted(node)
    }

  return {"shard_count": shard_count, "index": replace(tree)}, data
