"""Contents of a TFDS folder, for messages about missing data sets."""

import re

from etils import epath

from vmoe_study.data.dataset_specs import split_version

_VERSION = re.compile(r"\d+\.\d+\.\d+")
FEATURES = "features.json"
_MAX_SHOWN = 10


def explain_missing(data_dir: str, name: str) -> str:
  """Explains why data set `name` is not found although its folder exists.

  Returns:
    One or two sentences with a remedy; empty if nothing has this name.
  """
  base = re.split(r"[/:]", name)[0]
  folders = _version_folders(epath.Path(data_dir) / base)
  complete = [f for f in folders if (f / FEATURES).exists()]
  if complete:
    stored = ", ".join(_name(base, f) for f in complete[:_MAX_SHOWN])
    return f"It has {stored}. Use one of these names."
  wanted = [f for f in folders if _matches(name, base, f)] or folders
  if not wanted:
    return ""
  return (
    f"{wanted[-1]} has no {FEATURES}, as TFDS wrote none before version 4.0. "
    "Add it from Python, with the features that the data was written with: "
    "tensorflow_datasets.features.FeaturesDict({'image': ..., 'label': ...})"
    f".save_config({str(wanted[-1])!r}); if TFDS knows the data set, "
    "tensorflow_datasets.builder(NAME).info.features has them."
  )


def stored_names(data_dir: str) -> list[str]:
  """Names of the data sets in a TFDS folder, as far as it is readable."""
  try:
    return sorted(
      path.name for path in epath.Path(data_dir).iterdir() if path.is_dir()
    )
  except Exception:  # A store's own error types; only a hint is lost.
    return []


def _version_folders(folder: epath.Path) -> list[epath.Path]:
  """FOLDER/1.0.0 and FOLDER/CONFIG/1.0.0."""
  try:
    children = sorted(path for path in folder.iterdir() if path.is_dir())
    found = [path for path in children if _VERSION.fullmatch(path.name)]
    for child in children:
      if child not in found:
        found += [
          path
          for path in sorted(child.iterdir())
          if _VERSION.fullmatch(path.name)
        ]
    return found
  except Exception:  # A store's own error types; only a hint is lost.
    return []


def _name(base: str, folder: epath.Path) -> str:
  """The name by which TFDS opens a folder: "base/config:1.0.0"."""
  config = "" if folder.parent.name == base else f"/{folder.parent.name}"
  return f"{base}{config}:{folder.name}"


def _matches(name: str, base: str, folder: epath.Path) -> bool:
  stored, version = split_version(_name(base, folder))
  wanted, wanted_version = split_version(name)
  return stored == wanted and wanted_version in ("", version)
