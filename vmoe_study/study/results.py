"""Results of runs, grouped by config: a cell has one value per seed.

They are read from workdirs, from the root of a sweep, whose manifest also lists
missing runs, or from a file written by `write`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from vmoe_study.files.atomic import write_atomically
from vmoe_study.files.json_text import MALFORMED, to_json
from vmoe_study.run.finished import is_finished
from vmoe_study.run.saved_config import CONFIG_FILE, read_config, upgrade
from vmoe_study.study import sweep_manifest
from vmoe_study.training.metrics_file import from_json, read_metrics

RESULTS_FILE = "results.json"
FORMAT = 1
_REMEDY = (
  "Give the workdir of a run, the root of a sweep, or the "
  f"{RESULTS_FILE} that `report --out` wrote."
)
# Fields of a config that are read for results.
_READ = {
  "seed": int,
  "model.moe.router": str,
  "model.moe.options": dict,
  "model.moe.group_images": int,
  "train.batch_size": int,
  "evaluations": dict,
  "fewshot": dict,
}
MAX_RUNS_SHOWN = 5  # In an error message.


@dataclasses.dataclass(frozen=True)
class Cell:
  """All runs of one config, which differ only in their seeds.

  Attributes:
    name: unique within a sweep.
    config: completed config without the seed.
    seeds: seeds of the runs that exist or that the manifest lists, ascending.
    runs: last value of each metric by seed, for finished runs only.
    expected: published percentage of each metric for this config.
    source: source of the expected numbers.
    names: name of the run by seed, where it is not the cell's name; not stored
      in result files.
  """

  name: str
  config: Mapping[str, Any]
  seeds: tuple[int, ...]
  runs: Mapping[int, Mapping[str, float]]
  expected: Mapping[str, float] = dataclasses.field(default_factory=dict)
  source: str = ""
  names: Mapping[int, str] = dataclasses.field(default_factory=dict)

  def values(self, metric: str) -> list[float]:
    """The metric of each run that has it, by ascending seed."""
    found = [run.get(metric) for _, run in sorted(self.runs.items())]
    return [value for value in found if value is not None]

  @property
  def moe(self) -> Mapping[str, Any]:
    """The config of the routed blocks."""
    return self.config["model"]["moe"]

  @property
  def router(self) -> str:
    """Name of the router, or "dense"."""
    return self.moe["router"]

  @property
  def options(self) -> Mapping[str, Any]:
    """Options of the router."""
    return self.moe["options"]

  @property
  def num_experts(self) -> int:
    """Number of experts E; 1 for a dense model."""
    return self.options.get("num_experts", 1)

  @property
  def num_selected_experts(self) -> int:
    """Experts per token K of token choice; 0 for other routers."""
    return self.options.get("num_selected_experts", 0)

  @property
  def capacity_factor(self) -> float:
    """Slots per choice of a token; 0 for a dense model."""
    return self.options.get("capacity_factor", 0.0)

  @property
  def cost(self) -> float:
    """Slots per token, K times the capacity factor; 0 for a dense model."""
    return self.capacity_factor * (self.num_selected_experts or 1)

  @property
  def group_images(self) -> int:
    """Images per routing group."""
    return self.moe["group_images"]

  @property
  def batch_priority(self) -> bool:
    """Whether token choice has batch priority; false for other routers."""
    return bool(self.options.get("batch_priority"))


def read_run(workdir: epath.PathLike) -> tuple[dict[str, Any], dict | None]:
  """A run's config and its final metrics; None if it has not finished.

  The final metrics are the last value of each metric and two additional ones:
  `seconds`, the training time with compilation but without evaluation, and
  `images_per_second` over that time.

  Raises:
    ValueError: the folder is not the workdir of a run.
  """
  path = epath.Path(workdir) / CONFIG_FILE
  if not path.exists():
    raise ValueError(_no_run(path.parent))
  config = read_config(path)
  _check(path, config)
  rows = list(read_metrics(workdir))
  if not is_finished(workdir, config, rows):
    return config, None
  final: dict[str, float] = {}
  for row in rows:
    final |= row
  seconds = sum(row.get("train/seconds", 0.0) for row in rows)
  images = final["step"] * config["train"]["batch_size"]
  final["seconds"] = seconds
  final["images_per_second"] = images / seconds if seconds else 0.0
  return config, final


def _check(path: epath.Path, config: Mapping[str, Any]) -> None:
  """Raises ValueError for a config without the fields that a `Cell` reads."""
  for field, kind in _READ.items():
    value: Any = config
    for name in field.split("."):
      value = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, kind):
      raise ValueError(
        f"{path}: {field}={value!r}: must be {kind.__name__}, as `train` "
        f"writes it. {_REMEDY}"
      )


def final_metrics(workdir: epath.PathLike) -> dict[str, float] | None:
  """The final metrics of a run; None if it has not started or not finished."""
  path = epath.Path(workdir)
  return read_run(path)[1] if (path / CONFIG_FILE).exists() else None


def _no_run(folder: epath.Path) -> str:
  if not folder.exists():
    return f"{folder}: there is no such folder. {_REMEDY}"
  text = f"{folder}: not the workdir of a run, because it has no {CONFIG_FILE}."
  found = folder.glob(f"*/{CONFIG_FILE}")
  if runs := sorted(str(path.parent) for path in found):
    more = ", ..." if len(runs) > MAX_RUNS_SHOWN else ""
    text += f" It contains runs: {', '.join(runs[:MAX_RUNS_SHOWN])}{more}."
  return f"{text} {_REMEDY}"


def load(paths: Sequence[epath.PathLike]) -> list[Cell]:
  """Reads results from workdirs, roots of sweeps, and result files.

  Args:
    paths: paths of any of these, or of a folder that holds a `results.json`.
      Workdirs whose configs differ only in the seed form one cell, and so do
      parts of a sweep that were run in several places.

  Raises:
    ValueError: a path is none of these.
  """
  cells: list[Cell] = []
  workdirs: list[epath.Path] = []
  for path in map(epath.Path, paths):
    if sweep_manifest.exists(path):
      cells += _from_sweep(path)
    elif path.is_file():
      cells += _from_file(path)
    elif (path / RESULTS_FILE).exists():
      cells += _from_file(path / RESULTS_FILE)
    else:
      workdirs.append(path)
  return _joined(cells) + list(_from_workdirs(workdirs))


def _joined(cells: Sequence[Cell]) -> list[Cell]:
  """Joins cells with equal names and configs that share no seed."""
  joined: list[Cell] = []
  for cell in cells:
    for i, other in enumerate(joined):
      disjoint = not other.runs.keys() & cell.runs.keys()
      if disjoint and _is_same(cell, other):
        seeds = tuple(sorted({*other.seeds, *cell.seeds}))
        runs = {**other.runs, **cell.runs}
        joined[i] = dataclasses.replace(other, seeds=seeds, runs=runs)
        break
    else:
      joined.append(cell)
  return joined


def _is_same(cell: Cell, other: Cell) -> bool:
  """Whether two cells have the same name and config."""
  if cell.name != other.name:
    return False
  return cell.config == other.config or (
    completed(cell.config) == completed(other.config)
  )


def completed(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """The config of a cell, with defaults for fields added after its results."""
  from vmoe_study.config import parse  # Takes JAX, which reports do without.

  try:
    found = parse({**config, "seed": 0}).to_dict()
  except ValueError:  # Written by an older version, which had other fields.
    return config
  del found["seed"]
  return json.loads(json.dumps(found))


def _from_sweep(root: epath.Path) -> Iterator[Cell]:
  seeds, cells = sweep_manifest.read(root)
  for name, cell in cells.items():
    found = {
      seed: final_metrics(sweep_manifest.run_folder(root, name, seed))
      for seed in seeds
    }
    runs = {seed: final for seed, final in found.items() if final is not None}
    config, expected = cell["config"], cell["expected"]
    yield Cell(name, config, tuple(seeds), runs, expected, cell["source"])


def _from_workdirs(workdirs: Sequence[epath.Path]) -> Iterator[Cell]:
  """Groups runs whose configs differ only in the seed."""
  groups: dict[tuple[str, int], dict] = {}
  for workdir, name in zip(workdirs, _unique_tails(workdirs), strict=True):
    config, final = read_run(workdir)
    seed, copy = config.pop("seed"), 0
    key = json.dumps(config, sort_keys=True)
    while seed in groups.setdefault((key, copy), {}):
      copy += 1  # A repeated run gets its own cell.
    groups[key, copy][seed] = name, config, final
  for group in groups.values():
    seeds = tuple(sorted(group))
    name, config, _ = group[seeds[0]]
    runs = {seed: run[2] for seed, run in group.items() if run[2] is not None}
    names = {seed: run[0] for seed, run in group.items()}
    yield Cell(name, config, seeds, runs, names=names)


def _unique_tails(paths: Sequence[epath.Path]) -> list[str]:
  """For each path, the shortest tail that no other path shares."""
  split = [path.parts for path in paths]
  tails = []
  for own in split:
    unique = (
      length
      for length in range(1, len(own))
      if sum(parts[-length:] == own[-length:] for parts in split) == 1
    )
    length = next(unique, len(own))
    tails.append(str(pathlib.PurePosixPath(*own[-length:])))
  return tails


def _from_file(path: epath.Path) -> list[Cell]:
  try:
    return [_from_json(cell) for cell in json.loads(path.read_bytes())["cells"]]
  except MALFORMED as error:
    raise ValueError(f"{path}: not a file of results. {_REMEDY}") from error


def _from_json(cell: Mapping[str, Any]) -> Cell:
  return Cell(
    cell["name"],
    upgrade(cell["config"]),
    tuple(cell["seeds"]),
    {int(seed): from_json(run) for seed, run in cell["runs"].items()},
    cell["expected"],
    cell["source"],
  )


def write(path: epath.PathLike, cells: Sequence[Cell]) -> None:
  """Writes results to a JSON file that `load` reads."""
  content = {"format": FORMAT, "cells": [_as_json(cell) for cell in cells]}
  write_atomically(path, to_json(content, indent=1))


def _as_json(cell: Cell) -> dict[str, Any]:
  runs = {str(seed): dict(run) for seed, run in sorted(cell.runs.items())}
  content = {**dataclasses.asdict(cell), "runs": runs}
  del content["names"]
  return content
