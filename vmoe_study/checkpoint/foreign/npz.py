"""Reads and writes parameters as NumPy's `.npz`.

A file holds one array per parameter, named by its path. Names of other ViT code
are translated to ours on reading (`vit_names.py`). bfloat16 is stored as raw
2-byte items, as in big_vision.

Files are not trusted: nothing is unpickled, and before an array is read, its
header, its size in the archive and the size of the file must agree.
"""

import math
import os
import zipfile
from collections.abc import Iterator
from typing import IO, Any

import ml_dtypes
import numpy as np

from vmoe_study.checkpoint import tree as tree_lib
from vmoe_study.checkpoint.errors import CheckpointError, one_line
from vmoe_study.checkpoint.foreign import vit_names
from vmoe_study.files.atomic import open_atomically
from vmoe_study.files.location import locate

PyTree = Any

# Limits of the uncompressed size: this multiple of the file's, or these bytes.
_MAX_RATIO = 100
_MAX_SMALL = 64 << 20
_BFLOAT16 = np.dtype("V2")


def load_npz(path: str, shapes_only: bool = False) -> dict[str, Any]:
  """Reads parameters, with our names.

  Args:
    path: local path, or a URL that fsspec opens.
    shapes_only: whether to read only shapes; the arrays are then zeros that
      take no memory.

  Returns:
    Nested dictionaries of numpy arrays.

  Raises:
    CheckpointError: the file is missing, damaged, or holds anything but arrays
      of numbers.
    ValueError: fsspec does not know this kind of URL.
  """
  fs, local = locate(path)
  try:
    with fs.open(local, "rb") as stream:
      arrays = dict(_read_arrays(stream, fs.size(local), shapes_only))
    return tree_lib.unflatten(vit_names.to_parameter_names(arrays))
  except Exception as error:
    # Damaged archives raise errors of many types.
    raise CheckpointError(
      f"{path}: {one_line(error)}. It must be an .npz file of numeric arrays, "
      "as NumPy writes it. Fetch it again."
    ) from error


def save_npz(path: str, params: PyTree) -> None:
  """Writes a tree, array by array. A failed write leaves the file unchanged.

  Raises:
    ValueError: fsspec does not know this kind of URL.
  """
  with open_atomically(os.path.expanduser(path)) as stream:
    _write_arrays(stream, params)


def _write_arrays(stream: IO[bytes], params: PyTree) -> None:
  with zipfile.ZipFile(stream, "w") as archive:
    for name, leaf in tree_lib.flatten(params).items():
      array = np.asarray(leaf)
      if array.dtype == ml_dtypes.bfloat16:
        array = array.view(_BFLOAT16)
      with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def _read_arrays(
  stream: IO[bytes], size: int, shapes_only: bool
) -> Iterator[tuple[str, np.ndarray]]:
  """The names and arrays of an archive of `size` bytes."""
  with zipfile.ZipFile(stream) as archive:
    members = archive.infolist()
    if len({member.filename for member in members}) < len(members):
      raise CheckpointError("two arrays have the same name")
    total = sum(member.file_size for member in members)
    if total > max(_MAX_SMALL, _MAX_RATIO * size):
      raise CheckpointError(
        f"{size} bytes would expand to {total}, more than {_MAX_RATIO} times"
      )
    for member in members:
      name, extension = os.path.splitext(member.filename)
      if extension != ".npy":
        raise CheckpointError(f"{member.filename!r} is not an array")
      with archive.open(member) as content:
        array = _check_header(content, member)
      if not shapes_only:
        with archive.open(member) as content:
          array = np.lib.format.read_array(content, allow_pickle=False)
      bfloat16 = array.dtype == _BFLOAT16
      yield name, array.view(ml_dtypes.bfloat16) if bfloat16 else array


def _check_header(content: IO[bytes], member: zipfile.ZipInfo) -> np.ndarray:
  """A placeholder for the array, after checking its dtype and size."""
  readers = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  version = np.lib.format.read_magic(content)
  if version not in readers:
    raise CheckpointError(f"{member.filename!r} has version {version}")
  shape, _, dtype = readers[version](content)
  if dtype.kind not in "biuf" and dtype != _BFLOAT16:
    raise CheckpointError(f"{member.filename!r} has dtype {dtype}")
  nbytes = math.prod(shape) * dtype.itemsize
  if min(shape, default=1) < 1 or content.tell() + nbytes != member.file_size:
    raise CheckpointError(
      f"{member.filename!r} claims {dtype}{shape}, but has {member.file_size} "
      "bytes"
    )
  return tree_lib.zeros_without_memory(shape, dtype)
