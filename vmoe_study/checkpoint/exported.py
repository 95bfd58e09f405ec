"""An exported model: a folder as on model hubs, which other libraries can read.

  config.json        metadata of the checkpoint, its step and more, strict JSON
  model.safetensors  arrays, named by their paths: params/head/kernel
  README.md          a model card; not read

The header of the safetensors file holds the manifest of `manifest.py` without
the metadata, which are in config.json. The manifest's digest covers both files,
and its fingerprints cover every array. Files may be links, as in the caches of
hubs. Arrays stored as float16 are read, and described in the manifest, as
float32.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from etils import epath
from fsspec.implementations.local import LocalFileSystem

from vmoe_study.checkpoint import manifest as manifest_lib
from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.checkpoint.errors import CheckpointError
from vmoe_study.files.atomic import write_atomically
from vmoe_study.files.json_text import MALFORMED, to_json
from vmoe_study.files.location import locate
from vmoe_study.files.ranges import file_size, read_range

PyTree = Any

CONFIG = "config.json"
ARRAYS = "model.safetensors"
CARD = "README.md"
_MANIFEST = "manifest"
_MAX_HEADER = 100 << 20  # Bytes, as in the library.


def is_exported(folder: epath.PathLike) -> bool:
  """Whether the folder holds an exported model."""
  return (epath.Path(folder) / ARRAYS).exists()


def write(
  folder: str,
  items: Mapping[str, PyTree],
  metadata: Mapping[str, Any],
  half: bool = False,
) -> None:
  """Writes a folder that `load.restore_trees` reads, without a model card.

  Args:
    folder: local path or URL.
    items: trees of arrays by name, such as "params".
    metadata: metadata of the checkpoint and its "step"; NaN and infinity become
      null.
    half: store float32 as float16.

  Raises:
    ValueError: a value is beyond the range of float16.
  """
  text = to_json(metadata, indent=2)
  arrays = {
    name: np.asarray(leaf, order="C")
    for name, leaf in tree_lib.flatten(dict(items)).items()
  }
  if half:
    arrays = {name: _to_half(name, array) for name, array in arrays.items()}
    items = tree_lib.unflatten(
      {name: _from_half(array) for name, array in arrays.items()}
    )
  manifest = manifest_lib.build(items, json.loads(text))
  del manifest["config"]
  content = safetensors.numpy.save(arrays, {_MANIFEST: json.dumps(manifest)})
  write_atomically(f"{folder}/{ARRAYS}", content)
  write_atomically(f"{folder}/{CONFIG}", text)


def read_step(folder: epath.PathLike) -> int:
  """The number of training steps of the model.

  Raises:
    CheckpointError: config.json is damaged.
  """
  step = _read_config(folder).get("step")
  if type(step) is not int:
    raise CheckpointError(f"{CONFIG}: step={step!r} must be a whole number")
  return step


def read_manifest(folder: epath.PathLike) -> dict[str, Any]:
  """The manifest, verified, with config.json as its metadata.

  Raises:
    CheckpointError: one of the files is damaged.
  """
  try:
    header = json.loads(_read_header(_path(folder, ARRAYS)))
    manifest = json.loads(header["__metadata__"][_MANIFEST])
    manifest = {**manifest, "config": _read_config(folder)}
    manifest_lib.check(manifest)
  except MALFORMED as error:
    raise CheckpointError(
      f"{ARRAYS}: its header has no manifest of this package"
    ) from error
  except CheckpointError as error:
    raise CheckpointError(
      f"{CONFIG} and {ARRAYS} are not as they were exported: {error}. Fields "
      "of the config are changed with --config.FIELD=VALUE, not in the file"
    ) from error
  return manifest


def read_item(folder: epath.PathLike, item: str) -> dict[str, Any]:
  """Reads one tree of arrays to host memory, unverified.

  Raises:
    CheckpointError: a name is not the path of a parameter.
  """
  fs, path = locate(_path(folder, ARRAYS))
  if isinstance(fs, LocalFileSystem):
    arrays = safetensors.numpy.load_file(path)
  else:
    arrays = safetensors.numpy.load(fs.cat_file(path))
  prefix = f"{item}/"
  return tree_lib.unflatten(
    {
      name.removeprefix(prefix): _from_half(array)
      for name, array in arrays.items()
      if name.startswith(prefix)
    }
  )


def _to_half(name: str, array: np.ndarray) -> np.ndarray:
  if array.dtype != np.float32:
    return array
  largest = np.abs(array).max(initial=0)
  if largest > np.finfo(np.float16).max:
    raise ValueError(
      f"{name}: the value {largest:g} is beyond the range of float16. Export "
      "as float32."
    )
  return array.astype(np.float16)


def _from_half(array: np.ndarray) -> np.ndarray:
  return array.astype(np.float32) if array.dtype == np.float16 else array


def _read_header(url: str) -> bytes:
  """Reads the header of the arrays: 8 bytes with its size, then JSON."""
  most = min(_MAX_HEADER, file_size(url) - 8)
  size = int.from_bytes(read_range(url, 0, 8), "little") if most > 0 else 0
  if not 0 < size <= most:
    raise CheckpointError(f"the header of {ARRAYS} claims {size} bytes")
  return read_range(url, 8, 8 + size)


def _read_config(folder: epath.PathLike) -> dict[str, Any]:
  try:
    config = json.loads(epath.Path(_path(folder, CONFIG)).read_bytes())
  except MALFORMED as error:
    raise CheckpointError(f"{CONFIG}: {error}") from error
  if not isinstance(config, dict):
    raise CheckpointError(f"{CONFIG}: it holds no JSON object")
  return config


def _path(folder: epath.PathLike, name: str) -> str:
  return str(epath.Path(folder) / name)
