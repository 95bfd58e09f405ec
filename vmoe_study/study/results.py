"""What runs left behind, gathered by config: one cell, one value per seed.

Results come from the folders of runs, from the root folder of a sweep, which
also knows what has not run yet, or from a file that `write` made of either.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from vmoe_study.run import workdir as workdir_lib
from vmoe_study.training.metrics import read_metrics

SWEEP_FILE = "sweep.json"
RESULTS_FILE = "results.json"
FORMAT = 1
REMEDY = (
  "Give the folder of a run, the root of a sweep, or the "
  f"{RESULTS_FILE} that `report --out` wrote."
)
LONGEST_NAME = 200  # Of a folder; file systems take no more than 255 bytes.
NUM_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Cell:
  """All runs of one config; they differ by their seeds.

  Attributes:
    name: of the cell.
    config: with every default written out, but the seed.
    seeds: that are there or planned, ascending.
    runs: seed to the last value of every metric, of finished runs only.
    expected: metric to percent, as published for this config.
    source: of the expected numbers.
    names: seed to what its run is called, if that is not the cell's name; not
      kept in files of results.
  """

  name: str
  config: Mapping[str, Any]
  seeds: tuple[int, ...]
  runs: Mapping[int, Mapping[str, float]]
  expected: Mapping[str, float] = dataclasses.field(default_factory=dict)
  source: str = ""
  names: Mapping[int, str] = dataclasses.field(default_factory=dict)

  def values(self, metric: str) -> list[float]:
    """The metric by ascending seed, of the runs that have it."""
    found = [run.get(metric) for _, run in sorted(self.runs.items())]
    return [value for value in found if value is not None]

  @property
  def moe(self) -> Mapping[str, Any]:
    """The routed part of its model's config."""
    return self.config["model"]["moe"]

  @property
  def router(self) -> str:
    """A name of the zoo, or "dense"."""
    return self.moe["router"]

  @property
  def options(self) -> Mapping[str, Any]:
    """Of its router."""
    return self.moe["options"]

  @property
  def num_experts(self) -> int:
    """E."""
    return self.options["num_experts"]

  @property
  def num_selected_experts(self) -> int:
    """K of token choice; 0 elsewhere."""
    return self.options.get("num_selected_experts", 0)

  @property
  def capacity_factor(self) -> float:
    """Slots per choice of a token; 0 without a router."""
    return self.options.get("capacity_factor", 0.0)

  @property
  def cost(self) -> float:
    """Slots per token: capacity factor times K; 0 without a router."""
    return self.capacity_factor * (self.num_selected_experts or 1)

  @property
  def group_images(self) -> int:
    """Images routed together."""
    return self.moe["group_images"]

  @property
  def batch_priority(self) -> bool:
    """Of token choice; false elsewhere."""
    return bool(self.options.get("batch_priority"))


def read_run(workdir: epath.PathLike) -> tuple[dict[str, Any], dict | None]:
  """A run's config and its final metrics; None if it has not finished.

  To the last value of every metric it adds `seconds`, of training with
  compilation but without evaluation, and `images_per_second` over them.

  Raises:
    ValueError: the folder is not that of a run.
  """
  path = epath.Path(workdir) / workdir_lib.CONFIG_FILE
  if not path.exists():
    raise ValueError(_no_run(path.parent))
  config = json.loads(path.read_text())
  final: dict[str, float] = {}
  seconds = 0.0
  for row in read_metrics(workdir):
    final |= row
    seconds += row.get("train/seconds", 0.0)
  # The evaluation is written after the last training metrics: the row of a
  # finished run holds both.
  if not final or final["step"] != final.get("num_steps", -1):
    return config, None
  images = final["step"] * config["train"]["batch_size"]
  final["seconds"] = seconds
  final["images_per_second"] = images / seconds if seconds else 0.0
  return config, final


def _no_run(folder: epath.Path) -> str:
  if not folder.exists():
    return f"There is no folder {folder}. {REMEDY}"
  text = f"{folder} is not the workdir of a run: no {workdir_lib.CONFIG_FILE}."
  found = folder.glob(f"*/{workdir_lib.CONFIG_FILE}")
  if runs := sorted(str(path.parent) for path in found):
    more = ", ..." if len(runs) > NUM_SHOWN else ""
    text += f" There are runs in it: {', '.join(runs[:NUM_SHOWN])}{more}."
  return f"{text} {REMEDY}"


def load(paths: Sequence[epath.PathLike]) -> list[Cell]:
  """Results from folders of runs, roots of sweeps, and files of results.

  Raises:
    ValueError: a path is none of these.
  """
  cells: list[Cell] = []
  loose: list[epath.Path] = []
  for path in map(epath.Path, paths):
    if (path / SWEEP_FILE).exists():
      cells += _of_sweep(path)
    elif path.is_file():
      cells += _of_file(path)
    elif (path / RESULTS_FILE).exists():
      cells += _of_file(path / RESULTS_FILE)
    else:
      loose.append(path)
  return cells + list(_of_runs(loose))


def _of_sweep(root: epath.Path) -> Iterator[Cell]:
  plan = json.loads((root / SWEEP_FILE).read_text())
  for name, cell in plan["cells"].items():
    runs = {}
    for seed in plan["seeds"]:
      workdir = run_folder(root, name, seed)
      if (workdir / workdir_lib.CONFIG_FILE).exists():
        _, final = read_run(workdir)
        if final is not None:
          runs[seed] = final
    yield Cell(
      name,
      cell["config"],
      tuple(plan["seeds"]),
      runs,
      cell["expected"],
      cell["source"],
    )


def run_folder(root: epath.PathLike, name: str, seed: int) -> epath.Path:
  """Where a sweep keeps one run.

  Of a name that is too long for a folder, the head and a hash of all of it.
  """
  if len(name) > LONGEST_NAME:
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    name = f"{name[: LONGEST_NAME - 9]}-{digest}"
  return epath.Path(root) / name / f"seed{seed}"


def _of_runs(workdirs: Sequence[epath.Path]) -> Iterator[Cell]:
  """Groups runs whose configs differ by the seed alone."""
  groups: dict[tuple[str, int], dict] = {}
  for workdir, name in zip(workdirs, _tails(workdirs), strict=True):
    config, final = read_run(workdir)
    seed, copy = config.pop("seed"), 0
    key = json.dumps(config, sort_keys=True)
    while seed in groups.setdefault((key, copy), {}):
      copy += 1  # The same run once more is a cell of its own.
    groups[key, copy][seed] = name, config, final
  for group in groups.values():
    seeds = tuple(sorted(group))
    name, config, _ = group[seeds[0]]
    runs = {seed: run[2] for seed, run in group.items() if run[2] is not None}
    names = {seed: run[0] for seed, run in group.items()}
    yield Cell(name, config, seeds, runs, names=names)


def _tails(paths: Sequence[epath.Path]) -> list[str]:
  """The shortest ends of paths that tell each from all others."""
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


def _of_file(path: epath.Path) -> list[Cell]:
  try:
    content = json.loads(path.read_text())
    cells = content["cells"]
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{path} is not a file of results. {REMEDY}") from error
  return [
    Cell(
      cell["name"],
      cell["config"],
      tuple(cell["seeds"]),
      {int(seed): run for seed, run in cell["runs"].items()},
      cell["expected"],
      cell["source"],
    )
    for cell in cells
  ]


def write(path: epath.PathLike, cells: Sequence[Cell]) -> None:
  """Writes results to a file that `load` reads."""
  content = {"format": FORMAT, "cells": [_as_json(cell) for cell in cells]}
  epath.Path(path).write_text(json.dumps(content, indent=1) + "\n")


def _as_json(cell: Cell) -> dict[str, Any]:
  runs = {str(seed): dict(run) for seed, run in sorted(cell.runs.items())}
  content = {**dataclasses.asdict(cell), "runs": runs}
  del content["names"]
  return content
