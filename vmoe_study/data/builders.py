"""TFDS builders by name: building a data set, and opening a prepared one.

Reading a prepared data set needs only its files. Building one needs code: the
modules of `datasets/` for `OWN_DATASETS`, those of TFDS for all others.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from vmoe_study.console.progress import waiting
from vmoe_study.data.dataset_specs import find_spec, split_version
from vmoe_study.data.tfds_folder import explain_missing, stored_names
from vmoe_study.data.tfds_metadata import ForeignClassError, open_builder
from vmoe_study.files.location import REMEDY, check_reachable
from vmoe_study.options import did_you_mean

PACKAGE = "vmoe_study.data.datasets"
OWN_DATASETS = {
  "digits": ("digits", "Digits"),
  "fashion_mnist": ("fashion_mnist", "LocalFashionMnist"),
  "emoji": ("emoji", "Emoji"),
  "glyphs": ("glyphs", "Glyphs"),
  "glyph_scenes": ("glyph_scenes", "GlyphScenes"),
  "jft_like": ("jft_like", "JftLike"),
}
AUTOMATIC = "digits"


class MissingDataError(FileNotFoundError):
  """A data set, or a file that it is built from, is missing."""


def make_builder(
  name: str, data_dir: str | None = None
) -> tfds.core.DatasetBuilder:
  """Returns the builder that can build data set `name`.

  Args:
    name: a TFDS name, optionally with "/config" and ":version".
    data_dir: the TFDS folder; TFDS's default when None.

  Raises:
    MissingDataError: neither this package nor TFDS has such a builder.
  """
  bare, version = split_version(name)
  base, _, config = bare.partition("/")
  if base in OWN_DATASETS:
    module, class_name = OWN_DATASETS[base]
    cls = getattr(importlib.import_module(f"{PACKAGE}.{module}"), class_name)
    if version and not tfds.core.Version(cls.VERSION).match(version):
      raise MissingDataError(
        f"data set {name!r}: this package builds version {cls.VERSION} only. "
        f"Use {bare!r}."
      )
    if hasattr(cls, "config_from_name"):
      return cls(data_dir=data_dir, config=cls.config_from_name(config))
    return cls(data_dir=data_dir)
  try:
    return tfds.builder(name, data_dir=data_dir, try_gcs=False)
  except tfds.core.DatasetNotFoundError as error:
    raise _unknown(name) from error


def _has_builder(name: str) -> bool:
  """Whether there is a builder; always True for TFDS community data sets."""
  base = _bare_name(name)
  return ":" in base or base in _builder_names()


def _bare_name(name: str) -> str:
  """Strips config and version."""
  return split_version(name)[0].split("/")[0]


def _builder_names() -> list[str]:
  return [*OWN_DATASETS, *tfds.list_builders(with_community_datasets=False)]


def _unknown(name: str, data_dir: str = "") -> MissingDataError:
  names = [*_builder_names(), *(stored_names(data_dir) if data_dir else [])]
  where = f" is not in {data_dir}, and" if data_dir else ":"
  return MissingDataError(
    f"data set {name!r}{where} no builder is known."
    f"{did_you_mean(_bare_name(name), names)} This package builds "
    f"{', '.join(OWN_DATASETS)}; TFDS lists its own with "
    "`tfds.list_builders()`."
  )


def prepare(
  name: str,
  data_dir: str | None = None,
  manual_dir: str | None = None,
  download: bool = False,
) -> tfds.core.DatasetBuilder:
  """Builds data set `name` if it is not prepared yet; shows progress.

  Args:
    name: see `make_builder`.
    data_dir: the TFDS folder; TFDS's default when None.
    manual_dir: folder of the files that the user must supply.
    download: whether TFDS may use the network.

  Returns:
    The builder; its `info` has the number of examples per split.

  Raises:
    MissingDataError: a file or a package that the builder needs is missing, or
      downloading is not allowed.
  """
  _check_tensorflow(name)
  builder = make_builder(name, data_dir)
  if builder.is_prepared():
    return builder
  folder = manual_dir or getattr(builder, "default_manual_dir", None)
  spec = find_spec(name)
  if spec and spec.manual:
    folder = folder or os.path.join(
      data_dir or tfds.core.constants.DATA_DIR, "downloads", "manual"
    )
    _check_manual_files(name, spec.manual, Path(folder).expanduser(), builder)
  if hasattr(builder, "check_manual_dir"):
    builder.check_manual_dir(Path(folder).expanduser())
  config = tfds.download.DownloadConfig(manual_dir=folder)
  if _bare_name(name) in OWN_DATASETS:
    _check_local(name, data_dir)
    with _progress(name):  # Writing ArrayRecord needs no TensorFlow.
      builder.download_and_prepare(
        download_config=config, file_format="array_record"
      )
    return builder
  if not download:
    raise MissingDataError(
      f"data set {name!r}: TFDS may need to download files. Allow it with "
      "--download."
    )
  import tensorflow as tf

  tf.config.set_visible_devices([], "GPU")  # JAX uses the accelerators.
  with _progress(name):
    builder.download_and_prepare(download_config=config)
  return builder


@contextlib.contextmanager
def _progress(name: str) -> Iterator[None]:
  """Shows TFDS's progress bars on a terminal, log lines elsewhere."""
  if sys.stderr.isatty():
    yield
    return
  tfds.disable_progress_bar()
  try:
    with waiting(f"building {name}"):
      yield
  finally:
    tfds.enable_progress_bar()


def _check_local(name: str, data_dir: str | None) -> None:
  """Raises ValueError for object stores, where ArrayRecord cannot append."""
  where = str(data_dir or tfds.core.constants.DATA_DIR)
  if "://" in where:
    raise ValueError(
      f"data_dir={where!r}: must be a local folder to build {name!r} in. Build "
      "it in one, and copy it with --to=URL."
    )


def _check_tensorflow(name: str) -> None:
  """Raises MissingDataError if TFDS has to build `name` without TensorFlow."""
  if _bare_name(name) in OWN_DATASETS or not _has_builder(name):
    return
  if importlib.util.find_spec("tensorflow") is None:
    raise MissingDataError(
      f"data set {name!r}: TFDS builds it with TensorFlow, which is not "
      "installed. Install the extra `tfds` of this package."
    )


def _check_manual_files(
  name: str,
  files: Sequence[str],
  folder: Path,
  builder: tfds.core.DatasetBuilder,
) -> None:
  """Raises MissingDataError naming every file that the user must supply."""
  missing = [file for file in files if not (folder / file).exists()]
  if missing:
    instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
    raise MissingDataError(
      f"data set {name!r}: needs {', '.join(missing)} in {folder} (or in the "
      f"folder given by --manual-dir). {instructions}"
    )


def open_prepared(
  name: str, data_dir: str | None = None
) -> tfds.core.DatasetBuilder:
  """Returns a read-only builder from the files of a prepared data set.

  Never downloads. Builds only `digits`, on first use, from the images of
  scikit-learn, in a fraction of a second.

  Raises:
    MissingDataError: the data set is not prepared; the message has the command.
    OSError: the remote store cannot be read.
    ValueError: the metadata cannot be read.
    ForeignClassError: the metadata name a class that is neither TFDS's nor
      imported.
  """
  where = str(data_dir or tfds.core.constants.DATA_DIR)
  check_reachable(where)
  try:
    return open_builder(name, data_dir)
  except tfds.core.DatasetNotFoundError as error:
    if _bare_name(name) == AUTOMATIC and "://" not in where:
      return _build_automatic(name, data_dir)
    if explanation := explain_missing(where, name):
      raise MissingDataError(
        f"data set {name!r}: is not in {where}. {explanation}"
      ) from error
    if not _has_builder(name):
      raise _unknown(name, where) from error
    option = f" --data-dir={data_dir}" if data_dir else ""
    raise MissingDataError(
      f"data set {name!r}: is not prepared in {where}. Run\n"
      f"  python -m vmoe_study prepare {name}{option}"
    ) from error
  except ForeignClassError:
    raise
  except Exception as error:  # TFDS and stores raise errors of many types.
    if "://" in where:
      raise OSError(f"{where}: {error}. {REMEDY}") from error
    reason = " ".join(str(error).split()).rstrip(".")
    raise ValueError(
      f"data set {name!r} in {where}: {reason}. Correct its name, or prepare "
      "it again."
    ) from error


def _build_automatic(
  name: str, data_dir: str | None
) -> tfds.core.DatasetBuilder:
  """Builds `digits`; several processes may try at the same time."""
  with contextlib.suppress(FileExistsError):  # Another process was faster.
    prepare(name, data_dir)
  return open_builder(name, data_dir)
