"""The folder of a run: which config it belongs to, where its parts lie."""

import json
from typing import Any

import jax
from etils import epath

CONFIG_FILE = "config.json"
# What may change between two parts of a run: where and how it runs, and how
# often it reports, but not what it computes.
HARMLESS = (
  "mesh.",
  "train.num_workers",
  "train.report_every",
  "train.evaluate_every",
  "train.save_every",
  "train.keep",
)


def checkpoints(workdir: epath.PathLike) -> epath.Path:
  """Where the checkpoints of a run are."""
  return epath.Path(workdir) / "checkpoints"


def check(workdir: epath.PathLike, config: dict[str, Any]) -> None:
  """Checks that a run's folder is new, or belongs to the same config.

  Args:
    workdir: of the run; may exist.
    config: JSON-able.

  Raises:
    ValueError: if the folder belongs to another config; fields in `HARMLESS`
      may differ.
  """
  path = epath.Path(workdir) / CONFIG_FILE
  if not path.exists():
    return
  found = json.loads(path.read_text())
  changes = [
    change
    for change in describe_changes(found, json.loads(json.dumps(config)))
    if not change.startswith(HARMLESS)
  ]
  if changes:
    raise ValueError(
      f"workdir {workdir} belongs to a run with another config:\n  "
      + "\n  ".join(changes)
      + "\nChoose another workdir, or the config that it was started with."
    )


def claim(workdir: epath.PathLike, config: dict[str, Any]) -> None:
  """Writes the config into a new run's folder; an old one stays as it is."""
  path = epath.Path(workdir) / CONFIG_FILE
  if jax.process_index() == 0 and not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(config, indent=2) + "\n")
    part.replace(path)


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
