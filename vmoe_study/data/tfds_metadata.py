"""Reads the metadata of prepared TFDS data sets as data, never as code.

TFDS would import the module of any feature class that `features.json` names,
and `dataset_info.json` may name record files anywhere. Here only classes of
TFDS or of modules imported already are accepted, and only files in the data
set's folder.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterable, Iterator

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.read_only_builder import builder_from_files
from tensorflow_datasets.core.utils.version import list_all_versions

from vmoe_study.data.dataset_specs import split_version
from vmoe_study.data.tfds_folder import FEATURES

_TFDS = "tensorflow_datasets."
_LOCK = threading.Lock()
_Feature = tfds.features.FeatureConnector


class ForeignClassError(ValueError):
  """A feature has a class that is neither TFDS's nor imported."""


def open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  """Like TFDS's `builder_from_files`, but imports no foreign modules.

  Raises:
    tfds.core.DatasetNotFoundError: there is no such data set.
    ForeignClassError: a feature has an unknown class.
  """
  with _no_foreign_imports(name):
    if folder := _version_folder(name, data_dir):
      return tfds.builder_from_directory(folder)
    # The default config may be known to TFDS's code alone. To look it up, TFDS
    # imports its 500 data sets, for half a second.
    return builder_from_files(name, data_dir=data_dir)


def _version_folder(name: str, data_dir: str | None) -> epath.Path | None:
  """FOLDER/NAME/VERSION of the given or the last version, if it exists."""
  bare, version = split_version(name)
  folder = epath.Path(data_dir or tfds.core.constants.DATA_DIR) / bare
  versions = [version] if version else list_all_versions(folder)[-1:]
  for path in (folder / str(version) for version in versions):
    if (path / FEATURES).exists():
      return path
  return None


@contextlib.contextmanager
def _no_foreign_imports(name: str) -> Iterator[None]:
  """Lets TFDS look up only known feature classes in this context."""

  def find(cls, class_name: str):
    module = class_name.rpartition(".")[0]
    if module not in sys.modules and not module.startswith(_TFDS):
      raise ForeignClassError(
        f"data set {name!r}: a feature has the class {class_name!r}, which is "
        "not TFDS's own, and reading data imports no other modules. If you "
        "trust this class, import its module in your config file."
      )
    return original(cls, class_name)

  with _LOCK:
    original = _Feature.cls_from_name.__func__
    _Feature.cls_from_name = classmethod(find)
    try:
      yield
    finally:
      _Feature.cls_from_name = classmethod(original)


def check_files(name: str, folder: str, files: Iterable[str]) -> None:
  """Raises ValueError unless all record files are in the data set's folder."""
  for file in files:
    if os.path.normpath(os.path.dirname(file)) != os.path.normpath(folder):
      raise ValueError(
        f"data set {name!r}: its dataset_info.json names the file {file}, "
        f"which is not in {folder}. Prepare the data set again."
      )
