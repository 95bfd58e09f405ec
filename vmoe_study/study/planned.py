"""Contrasts that were specified before the runs of a study.

They are few, name the rows that they compare, and are tested together: Holm's
correction is over all contrasts of all end points. The contrasts of
`contrasts.py`, by comparison, are exploratory.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vmoe_study.study.linear_model import Effect, GridFit
from vmoe_study.study.results import Cell
from vmoe_study.study.statistics import Comparison, compare, holm


@dataclasses.dataclass(frozen=True)
class PlannedContrast:
  """The mean of some rows minus the mean of others.

  Attributes:
    text: "first against second", in words.
    first: names of the rows of the first side.
    second: names of the rows of the second side.
    margin: equivalence margin in percentage points: a smaller difference counts
      as none. 0 for no equivalence test.
  """

  text: str
  first: tuple[str, ...]
  second: tuple[str, ...]
  margin: float = 0.0

  @property
  def weights(self) -> dict[str, float]:
    """The weight of each row in the difference."""
    weights = dict.fromkeys(self.first, 1 / len(self.first))
    return weights | dict.fromkeys(self.second, -1 / len(self.second))


@dataclasses.dataclass(frozen=True)
class Analysis:
  """The planned analysis of a table.

  Attributes:
    end_points: metrics by name of the end point; the value of a run is their
      mean.
    contrasts: the contrasts, tested for each end point.
  """

  end_points: Mapping[str, tuple[str, ...]]
  contrasts: tuple[PlannedContrast, ...]


class PlannedResult(NamedTuple):
  """A planned contrast of one end point, in percentage points.

  Attributes:
    end_point: name of the end point.
    contrast: the planned contrast.
    effect: the estimated difference.
    paired: the two sides compared seed by seed, for the seeds of all their
      rows: a check that needs no error variance in common with other rows.
    holm_p_value: p-value of the test that `effect` is 0, corrected for all
      contrasts of all end points.
  """

  end_point: str
  contrast: PlannedContrast
  effect: Effect
  paired: Comparison
  holm_p_value: float


def grid_values(
  cells: Sequence[Cell], metrics: Sequence[str]
) -> dict[str, dict[int, float]]:
  """The mean of some metrics by cell and seed, in percent.

  Runs without one of the metrics, and cells without runs, are left out.
  """
  values = {
    cell.name: {
      seed: 100 * statistics.fmean(run[name] for name in metrics)
      for seed, run in cell.runs.items()
      if all(name in run for name in metrics)
    }
    for cell in cells
  }
  return {name: runs for name, runs in values.items() if runs}


def planned_results(
  cells: Sequence[Cell], analysis: Analysis
) -> list[PlannedResult]:
  """Tests the planned contrasts on the results of a study.

  The error variance is pooled over all cells of the table.

  Raises:
    ValueError: a row of a contrast has no runs, or there are too few seeds.
  """
  found = []
  for name, metrics in analysis.end_points.items():
    values = grid_values(cells, metrics)
    for contrast in analysis.contrasts:
      if lacking := sorted(contrast.weights.keys() - values.keys()):
        raise ValueError(
          f"planned contrast {contrast.text!r}: row {lacking[0]} has no run "
          f"with {', '.join(metrics)}. Run the sweep to its end."
        )
    fit = GridFit(values)
    for contrast in analysis.contrasts:
      effect = fit.contrast(contrast.weights)
      found.append((name, contrast, effect, _paired(values, contrast)))
  corrected = holm([effect.p_value for _, _, effect, _ in found])
  return [
    PlannedResult(*result, p_value)
    for result, p_value in zip(found, corrected, strict=True)
  ]


def _paired(
  values: Mapping[str, Mapping[int, float]], contrast: PlannedContrast
) -> Comparison:
  """Compares the sides seed by seed, for the seeds that all rows have."""
  seeds = set.intersection(*(set(values[name]) for name in contrast.weights))
  first, second = (
    [statistics.fmean(values[name][seed] for name in side) for seed in seeds]
    for side in (contrast.first, contrast.second)
  )
  return compare(first, second)
