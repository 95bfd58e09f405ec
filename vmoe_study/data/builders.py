"""From a data set's name to its TFDS builder, and building it.

Reading a prepared data set needs only its files; building one needs code:
ours for the sets of `datasets/`, TFDS's for the rest.
"""

import contextlib
import importlib
import importlib.util
import os
import re
from pathlib import Path

import tensorflow_datasets as tfds
from tensorflow_datasets.core.read_only_builder import builder_from_files

from vmoe_study.data.dataset_specs import DATASETS
from vmoe_study.files.location import REMEDY, check_reachable
from vmoe_study.options import did_you_mean

PACKAGE = "vmoe_study.data.datasets"
OURS = {
  "digits": ("digits", "Digits"),
  "fashion_mnist": ("fashion_mnist", "LocalFashionMnist"),
  "emoji": ("emoji", "Emoji"),
  "jft_like": ("jft_like", "JftLike"),
}
AUTOMATIC = "digits"


class MissingDataError(FileNotFoundError):
  """A data set, or a file it is built from, is not there; says the remedy."""


def make_builder(
  name: str, data_dir: str | None = None
) -> tfds.core.DatasetBuilder:
  """Returns the builder whose code makes data set `name`.

  Args:
    name: a TFDS name, with "/config" and ":version" where there are such.
    data_dir: the TFDS folder; TFDS's default when None.

  Raises:
    MissingDataError: neither this package nor TFDS has such a builder.
  """
  base, _, config = name.partition("/")
  if base in OURS:
    module, class_name = OURS[base]
    cls = getattr(importlib.import_module(f"{PACKAGE}.{module}"), class_name)
    if hasattr(cls, "config_from_name"):
      return cls(data_dir=data_dir, config=cls.config_from_name(config))
    return cls(data_dir=data_dir)
  try:
    return tfds.builder(name, data_dir=data_dir, try_gcs=False)
  except tfds.core.DatasetNotFoundError as error:
    raise _unknown(name) from error


def _is_known(name: str) -> bool:
  """Whether this package or TFDS builds it; of a community's set, perhaps."""
  base = _base(name)
  return ":" in base or base in _names()


def _base(name: str) -> str:
  """Without config and version."""
  return re.split(r"/|:\d", name)[0]


def _names() -> list[str]:
  return [*OURS, *tfds.list_builders(with_community_datasets=False)]


def _unknown(name: str) -> MissingDataError:
  return MissingDataError(
    f"no builder is known for data set {name!r}."
    f"{did_you_mean(_base(name), _names())} This package builds "
    f"{', '.join(OURS)}; TFDS lists its own with `tfds.list_builders()`."
  )


def prepare(
  name: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  download: bool = False,
) -> tfds.core.DatasetBuilder:
  """Builds data set `name`, unless it is there already; shows progress.

  Args:
    name: as for `make_builder`.
    data_dir: where to put it.
    manual_dir: the folder with the files that the user has to supply.
    download: whether TFDS may fetch files from the network.

  Returns:
    The builder; its `info` has the number of examples per split.

  Raises:
    MissingDataError: a needed file is missing or may not be downloaded.
  """
  _check_tensorflow(name)
  builder = make_builder(name, data_dir)
  if builder.is_prepared():
    return builder
  folder = manual_dir or getattr(builder, "default_manual_dir", None)
  if name in DATASETS and DATASETS[name].manual:
    folder = folder or os.path.join(
      data_dir or tfds.core.constants.DATA_DIR, "downloads", "manual"
    )
    _check_manual_files(name, Path(folder).expanduser(), builder)
  config = tfds.download.DownloadConfig(manual_dir=folder)
  if name.split("/")[0] in OURS:
    # ArrayRecord is written without TensorFlow, which takes seconds to import.
    builder.download_and_prepare(
      download_config=config, file_format="array_record"
    )
    return builder
  if not download:
    raise MissingDataError(
      f"TFDS builds {name!r} from files that it may fetch from the network;"
      " allow that with --download"
    )
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")  # JAX owns the accelerators
  builder.download_and_prepare(download_config=config)
  return builder


def _check_tensorflow(name: str) -> None:
  """Raises MissingDataError if TFDS has to build `name` without TensorFlow."""
  if _base(name) in OURS or not _is_known(name):
    return
  if importlib.util.find_spec("tensorflow") is None:
    raise MissingDataError(
      f"TFDS builds {name!r} with TensorFlow, which is not installed. Install "
      "the extra `tfds` of this package."
    )


def _check_manual_files(
  name: str, folder: Path, builder: tfds.core.DatasetBuilder
) -> None:
  """Raises MissingDataError naming every file that the user must supply."""
  files = DATASETS[name].manual
  missing = [file for file in files if not (folder / file).exists()]
  if missing:
    instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    raise MissingDataError(
      f"data set {name!r} needs {', '.join(missing)} in {folder}"
      f" (--manual_dir names another folder). {instructions}"
    )


def open_prepared(
  name: str, data_dir: str | None = None
) -> tfds.core.DatasetBuilder:
  """Returns a builder read from the files of a prepared data set.

  Builds nothing and downloads nothing, except that `digits`, which is part of
  scikit-learn, is built on first use (a fraction of a second).

  Raises:
    MissingDataError: the data set is not there; names the command to get it.
    OSError: it is on remote storage that cannot be read; at once, if that
      does not answer.
  """
  where = str(data_dir or tfds.core.constants.DATA_DIR)
  check_reachable(where)
  try:
    return builder_from_files(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    if name == AUTOMATIC:
      return _build_automatic(data_dir)
    if not _is_known(name):
      raise _unknown(name) from error
    option = f" --data_dir={data_dir}" if data_dir else ""
    raise MissingDataError(
      f"data set {name!r} is not prepared in {where}; run\n"
      f"  python -m vmoe_study prepare {name}{option}"
    ) from error
  except Exception as error:  # of TensorFlow, which knows no OSError
    if "://" not in where:
      raise
    raise OSError(f"{where}: {error}. {REMEDY}") from error


def _build_automatic(data_dir: str | None) -> tfds.core.DatasetBuilder:
  """Builds `digits`; of several processes that try at once, one succeeds."""
  with contextlib.suppress(FileExistsError):  # another process was faster
    prepare(AUTOMATIC, data_dir)
  return builder_from_files(AUTOMATIC, data_dir=data_dir)
