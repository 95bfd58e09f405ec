"""The workdir of a run: its layout, and the config that it belongs to."""

import contextlib
import json
from typing import Any

import jax
from absl import logging
from etils import epath

from vmoe_study.checkpoint.exported import is_exported
from vmoe_study.config import parse
from vmoe_study.files.atomic import write_atomically
from vmoe_study.run.finished import CHECKPOINTS
from vmoe_study.run.saved_config import (
  CONFIG_FILE,
  describe_changes,
  follow_defaults,
  is_changeable,
  read_config,
)


def checkpoints(workdir: epath.PathLike) -> epath.Path:
  """The folder of a run's checkpoints; an exported model is its own folder."""
  path = epath.Path(workdir)
  return path if is_exported(path) else path / CHECKPOINTS


def check(
  workdir: epath.PathLike,
  config: dict[str, Any],
  allow_change: bool = False,
  saved: dict[str, Any] | None = None,
) -> None:
  """Checks that a workdir is new, or belongs to the same config.

  Args:
    workdir: workdir of the run; need not exist.
    config: completed config of the run.
    allow_change: whether fields that match `CHANGEABLE_FIELDS` may differ; they
      are logged.
    saved: the config in the workdir's checkpoints, in case the config file is
      missing.

  Raises:
    ValueError: the workdir belongs to another config (the message lists the
      differences), or its config file is damaged.
  """
  changes = _changes(workdir, config, saved)
  harmless = [change for change in changes if is_changeable(change)]
  if allow_change and changes == harmless:
    for change in changes:
      logging.warning("config change allowed: %s", change)
  elif changes:
    remedy = "Choose another workdir, or the config that it was started with."
    if changes == harmless:
      remedy += " These fields do not change what is computed: --allow-change "
      remedy += "lets the run continue with the new config."
    raise ValueError(
      f"workdir={workdir}: belongs to a run with another config:\n  "
      + "\n  ".join(changes)
      + f"\n{remedy}"
    )


def write_config(workdir: epath.PathLike, config: dict[str, Any]) -> None:
  """Writes the config to a workdir, unless it has one."""
  path = epath.Path(workdir) / CONFIG_FILE
  if jax.process_index() or (path.exists() and not _changes(workdir, config)):
    return
  write_atomically(path, json.dumps(config, indent=2) + "\n")


def _changes(
  workdir: epath.PathLike,
  config: dict[str, Any],
  saved: dict[str, Any] | None = None,
) -> list[str]:
  """How the config differs from the workdir's; empty for a new workdir."""
  path = epath.Path(workdir) / CONFIG_FILE
  found = read_config(path) if path.exists() else saved
  if found is None:
    return []
  with contextlib.suppress(ValueError):
    found = parse(follow_defaults(found)).to_dict()  # Adds newer fields.
  return describe_changes(*json.loads(json.dumps([found, config])))
