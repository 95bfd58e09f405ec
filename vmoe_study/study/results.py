"""What runs left behind, gathered by config: one cell, one value per seed.

Results come from the folders of runs, from the root folder of a sweep, which
also knows what has not run yet, or from a file that `write` made of either.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from vmoe_study import workdir as workdir_lib
from vmoe_study.train.metrics import read_metrics

SWEEP_FILE = "sweep.json"
RESULTS_FILE = "results.json"
FORMAT = 1


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
  """

  name: str
  config: Mapping[str, Any]
  seeds: tuple[int, ...]
  runs: Mapping[int, Mapping[str, float]]
  expected: Mapping[str, float] = dataclasses.field(default_factory=dict)
  source: str = ""

  def values(self, metric: str, seeds: Iterable[int] | None = None):
    """The metric by seed, of the runs that have it."""
    chosen = self.runs if seeds is None else seeds
    found = [self.runs[seed].get(metric) for seed in sorted(chosen)]
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
  def cost(self) -> float:
    """K x C of token choice, C of other routers; 0 without a router."""
    options = self.moe["options"]
    if self.router == "dense":
      return 0.0
    factor = options.get("capacity_factor", 1.0)
    return factor * options.get("num_selected_experts", 1)

  @property
  def group_images(self) -> int:
    """Images routed together."""
    return self.moe["group_images"]

  @property
  def batch_priority(self) -> bool:
    """Of token choice; false elsewhere."""
    return bool(self.moe["options"].get("batch_priority"))


def read_run(workdir: epath.PathLike) -> tuple[dict[str, Any], dict | None]:
  """A run's config and its final metrics; None if it has not finished.

  To the last value of every metric it adds `seconds`, of training alone, and
  `images_per_second` over the whole run.

  Raises:
    ValueError: the folder is not that of a run.
  """
  path = epath.Path(workdir) / workdir_lib.CONFIG_FILE
  if not path.exists():
    raise ValueError(
      f"{workdir} is not the workdir of a run: no {workdir_lib.CONFIG_FILE}."
    )
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
  """Where a sweep keeps one run."""
  return epath.Path(root) / name / f"seed{seed}"


def _of_runs(workdirs: Iterable[epath.Path]) -> Iterator[Cell]:
  """Groups runs whose configs differ by the seed alone."""
  groups: dict[str, list] = {}
  for workdir in workdirs:
    config, final = read_run(workdir)
    seed = config.pop("seed")
    key = json.dumps(config, sort_keys=True)
    groups.setdefault(key, []).append((seed, workdir.name, config, final))
  for group in groups.values():
    group.sort(key=lambda run: run[:2])
    _, name, config, _ = group[0]
    seeds = tuple(seed for seed, *_ in group)
    runs = {seed: final for seed, _, _, final in group if final is not None}
    yield Cell(name, config, seeds, runs)


def _of_file(path: epath.Path) -> list[Cell]:
  try:
    content = json.loads(path.read_text())
    cells = content["cells"]
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} is not a file of results. Give the folder of a run, the root of "
      f"a sweep, or the {RESULTS_FILE} that `report --out` wrote."
    ) from error
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
  return {**dataclasses.asdict(cell), "runs": runs}
