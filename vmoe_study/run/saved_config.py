"""The config file in the workdir of a run, and differences of configs.

The module imports neither JAX nor the config schema, so that finished runs are
read quickly.
"""

import copy
import fnmatch
import json
from typing import Any

from etils import epath

CONFIG_FILE = "config.json"
# Fields by their names in configs of earlier versions.
RENAMED = {"model.moe.experts_alike": "model.moe.shared_expert_init"}
# Defaults of version 0.1.0 that have become "auto". "auto" means the same
# except on TPUs, where its plan form may sum in another order.
_NOW_AUTO = {"train.num_workers": 0, "model.moe.options.plan_form": "index"}
_SPARSE_TOKEN_CHOICE = "sparsity_constrained_token_choice"
# Fields that a resumed run may change with `--allow-change`: where and how it
# runs, how often it reports, and how it treats damaged data, but nothing that
# changes results computed so far.
CHANGEABLE_FIELDS = (
  "mesh.*",
  "train.num_workers",
  "train.read_threads",
  "train.batches_ahead",
  "train.report_every",
  "train.evaluate_every",
  "train.save_every",
  "train.keep*",
  "train.trackers*",
  "train.on_save_error",
  "train.health.*",
  "*.on_error",
)


def read_config(path: epath.PathLike) -> dict[str, Any]:
  """Reads the config file of a run, in the current form; unchecked.

  Raises:
    ValueError: the file does not hold a JSON object.
  """
  try:
    config = json.loads(epath.Path(path).read_bytes())
    if not isinstance(config, dict):
      raise ValueError(f"it holds a {type(config).__name__}, not a mapping")
    return upgrade(config)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"{path} is damaged: {error}. Remove it and run `train` again: the "
      "config in the checkpoints next to it is the same."
    ) from error


def upgrade(config: dict[str, Any]) -> dict[str, Any]:
  """Converts a config that an earlier version saved to the current form.

  Args:
    config: nested dicts; may hold only the model.

  >>> upgrade({"model": {"moe": {"experts_alike": True}}})
  {'model': {'moe': {'shared_expert_init': True}}}
  """
  config = copy.deepcopy(config)
  for old, new in RENAMED.items():
    parent, _, name = old.rpartition(".")
    section = _section(config, parent)
    if name in section:
      section[new.rpartition(".")[2]] = section.pop(name)
  schedule = _section(config, "train.schedule")
  if schedule.get("cooldown_steps"):
    schedule.setdefault("cooldown", "multiply")  # Before there was a choice.
  moe = _section(config, "model.moe")
  name, options = moe.get("router"), _section(moe, "options")
  if name == _SPARSE_TOKEN_CHOICE and "renormalize" not in options:
    # Its plan had C nonzeros per expert, before there was one with K per token.
    moe["router"] = "column_sparse_token_choice"
  if moe.get("router") == "dense":
    moe["options"] = {}  # Earlier versions saved options that had no effect.
  return config


def follow_defaults(config: dict[str, Any]) -> dict[str, Any]:
  """Replaces defaults of version 0.1.0 by the current ones, if equivalent.

  So a run of that version resumes with its recipe, which does not set these
  fields.
  """
  train = _section(config, "train")
  if not train or "shuffle" in train:  # Saved by a later version.
    return config
  config = copy.deepcopy(config)
  for path, default in _NOW_AUTO.items():
    parent, _, name = path.rpartition(".")
    section = _section(config, parent)
    if section.get(name) == default:
      section[name] = "auto"
  if "://" in str(config.get("data")):
    config["train"]["shuffle"] = "full"  # Today, "auto" shuffles in blocks.
  return config


def _section(config: Any, path: str) -> dict[str, Any]:
  """The dict at a path; an empty one if there is none."""
  for name in path.split("."):
    config = config.get(name) if isinstance(config, dict) else None
  return config if isinstance(config, dict) else {}


def describe_changes(old: Any, new: Any) -> list[str]:
  """Lists how two nested dicts differ, as "field: old -> new".

  >>> describe_changes({"train": {"keep": 1}}, {"train": {"keep": 2}})
  ['train.keep: 1 -> 2']
  """
  before, after = _flatten(old), _flatten(new)
  names = sorted(before.keys() | after.keys())
  absent = "(absent)"
  return [
    f"{name}: {before.get(name, absent)} -> {after.get(name, absent)}"
    for name in names
    if before.get(name, absent) != after.get(name, absent)
  ]


def is_changeable(change: str) -> bool:
  """Whether a change is of a field that matches `CHANGEABLE_FIELDS`.

  Args:
    change: a change as listed by `describe_changes`.
  """
  field = change.partition(": ")[0]
  return any(fnmatch.fnmatch(field, known) for known in CHANGEABLE_FIELDS)


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(value, dict) or not value:
    return {prefix: value}
  flat = {}
  for key, item in value.items():
    flat |= _flatten(item, f"{prefix}.{key}" if prefix else key)
  return flat
