"""The folder of a run: which config it belongs to, where its parts lie."""

import contextlib
import json
from typing import Any

import jax
from absl import logging
from etils import epath

from vmoe_study.config import complete

CONFIG_FILE = "config.json"
# What `--allow-change` lets differ between two parts of a run: where and how it
# runs, and how often it reports, but not what it computes.
HARMLESS = (
  "mesh.",
  "train.num_workers",
  "train.report_every",
  "train.evaluate_every",
  "train.save_every",
  "train.keep",
  "train.on_save_error",
  "train.health.",
)


def checkpoints(workdir: epath.PathLike) -> epath.Path:
  """Where the checkpoints of a run are."""
  return epath.Path(workdir) / "checkpoints"


def check(
  workdir: epath.PathLike,
  config: dict[str, Any],
  allow_change: bool = False,
  saved: dict[str, Any] | None = None,
) -> None:
  """Checks that a run's folder is new, or belongs to the same config.

  Args:
    workdir: of the run; may exist.
    config: JSON-able.
    allow_change: whether fields in `HARMLESS` may differ; they are logged.
    saved: what the folder's checkpoints say, should its config file be lost.

  Raises:
    ValueError: if the folder belongs to another config, and shows what differs;
      or if its config file is damaged.
  """
  changes = _changes(workdir, config, saved)
  harmless = [change for change in changes if change.startswith(HARMLESS)]
  if allow_change and changes == harmless:
    for change in changes:
      logging.warning("config change allowed: %s", change)
  elif changes:
    remedy = "Choose another workdir, or the config that it was started with."
    if changes == harmless:
      remedy += " As none of it changes what is computed, --allow-change lets "
      remedy += "the run go on with the new config."
    raise ValueError(
      f"workdir {workdir} belongs to a run with another config:\n  "
      + "\n  ".join(changes)
      + f"\n{remedy}"
    )


def claim(workdir: epath.PathLike, config: dict[str, Any]) -> None:
  """Writes the config into a run's folder, unless it is there already."""
  path = epath.Path(workdir) / CONFIG_FILE
  if jax.process_index() or (path.exists() and not _changes(workdir, config)):
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix(".part")
  part.write_text(json.dumps(config, indent=2) + "\n")
  part.replace(path)


def _changes(
  workdir: epath.PathLike,
  config: dict[str, Any],
  saved: dict[str, Any] | None = None,
) -> list[str]:
  """What differs from the config of a run's folder; nothing in a new one."""
  path = epath.Path(workdir) / CONFIG_FILE
  found = _read(path) if path.exists() else saved
  if found is None:
    return []
  with contextlib.suppress(ValueError):
    found = complete(found)  # A field that is newer than the run.
  return describe_changes(*json.loads(json.dumps([found, config])))


def _read(path: epath.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ValueError(
      f"{path} is damaged: {error}. Remove it: what the checkpoints beside it "
      "say of the config is used instead."
    ) from error


def describe_changes(old: Any, new: Any) -> list[str]:
  """What differs between two configs: "field: old -> new"."""
  before, after = _flatten(old), _flatten(new)
  names = sorted(before.keys() | after.keys())
  absent = "(absent)"
  return [
    f"{name}: {before.get(name, absent)} -> {after.get(name, absent)}"
    for name in names
    if before.get(name, absent) != after.get(name, absent)
  ]


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(value, dict) or not value:
    return {prefix: value}
  flat = {}
  for key, item in value.items():
    flat |= _flatten(item, f"{prefix}.{key}" if prefix else key)
  return flat
