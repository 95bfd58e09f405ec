"""Differences between models of the small study that its plan does not name.

  python notebooks/study/exploratory.py ROOT ... --out=DIR

Writes DIR/exploratory.md: differences in percentage points over the seeds that
both sides have, with 95% intervals of paired t-tests, which are not corrected
for their number, and the planned contrasts without the run that learned least.
"""

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence

from configs.tables import TABLES
from vmoe_study.drawing.render import markdown_table
from vmoe_study.study import results
from vmoe_study.study.planned import (
  Analysis,
  PlannedContrast,
  planned_results,
)
from vmoe_study.study.results import Cell
from vmoe_study.study.statistics import Estimate
from vmoe_study.study.tables import Table, planned_table

PLANNED = TABLES["glyphs_grid"].analysis
FAILED = "glyphs,router=soft,capacity=1,mlp=150,rate=0.012", 6
END_POINTS = PLANNED.end_points | {
  metric.split("/")[1]: (metric,) for metric in PLANNED.end_points["10-shot"]
}


def softmax(
  k: int = 1, group: int = 8, priority: str = "", balance: str = "0.05"
) -> str:
  """The row of softmax token choice."""
  return (
    f"softmax_token_choice,k={k},capacity=1,group={group}{priority},"
    f"balance={balance}"
  )


def sinkhorn(k: int = 1, priority: str = "") -> str:
  """The row of Sinkhorn token choice in groups of eight."""
  row = f"sinkhorn_token_choice,k={k},capacity=1,group=8{priority}"
  return f"{row},rate=0.012"


def experts(affinity: str, capacity: int = 1, group: int = 8) -> str:
  """The row of expert choice."""
  row = f"{affinity}_expert_choice,capacity={capacity},group={group}"
  return row if affinity == "sinkhorn" else f"{row},rate=0.012"


PRIORITY = ",batch_priority=true"
AFFINITIES = ("softmax", "sinkhorn", "sparsity_constrained")
ONE = tuple(experts(affinity) for affinity in AFFINITIES)
TWO = tuple(experts(affinity, 2) for affinity in AFFINITIES)
SOFT, EQUAL_SOFT, TWO_SOFT = (
  "soft,capacity=1,rate=0.012",
  "soft,capacity=1,mlp=150,rate=0.012",
  "soft,capacity=2,rate=0.012",
)
DENSE, WIDE_DENSE = "dense", "dense,mlp=242"
BY_POSITION = "identity,capacity=1,k=1,group=8,balance=0"

# Groups have eight images and the cost is 1 where nothing else is said.
CONTRASTS = {
  "softmax token choice - dense": ((softmax(),), (DENSE,)),
  "Sinkhorn token choice - dense": ((sinkhorn(),), (DENSE,)),
  "softmax expert choice - dense": (ONE[:1], (DENSE,)),
  "Sinkhorn expert choice - dense": (ONE[1:2], (DENSE,)),
  "sparsity-constrained expert choice - dense": (ONE[2:], (DENSE,)),
  "Soft MoE of equal FLOPs - dense": ((EQUAL_SOFT,), (DENSE,)),
  "Soft MoE - dense": ((SOFT,), (DENSE,)),
  "expert choice - softmax token choice, costs 1 and 2": (
    ONE + TWO,
    (softmax(), softmax(2)),
  ),
  "expert choice - Sinkhorn token choice, costs 1 and 2": (
    ONE + TWO,
    (sinkhorn(), sinkhorn(2)),
  ),
  "Sinkhorn - softmax expert choice, costs 1 and 2": (
    (ONE[1], TWO[1]),
    (ONE[0], TWO[0]),
  ),
  "sparsity-constrained - softmax expert choice, costs 1 and 2": (
    (ONE[2], TWO[2]),
    (ONE[0], TWO[0]),
  ),
  "Soft MoE of equal FLOPs - expert choice": ((EQUAL_SOFT,), ONE),
  "Soft MoE of equal FLOPs - Sinkhorn token choice": (
    (EQUAL_SOFT,),
    (sinkhorn(),),
  ),
  "Soft MoE - expert choice": ((SOFT,), ONE),
  "Soft MoE - softmax token choice in single images": (
    (SOFT,),
    (softmax(group=1),),
  ),
  "Soft MoE - softmax expert choice in single images": (
    (SOFT,),
    (experts("softmax", group=1),),
  ),
  "softmax token choice, groups of one - of eight": (
    (softmax(group=1),),
    (softmax(),),
  ),
  "softmax expert choice, groups of one - of eight": (
    (experts("softmax", group=1),),
    (experts("softmax"),),
  ),
  "batch priority - none, token choice, costs 1 and 2": (
    tuple(
      row(k, priority=PRIORITY) for row in (softmax, sinkhorn) for k in (1, 2)
    ),
    tuple(row(k) for row in (softmax, sinkhorn) for k in (1, 2)),
  ),
  "cost 2 - cost 1, softmax token choice": ((softmax(2),), (softmax(),)),
  "cost 2 - cost 1, Sinkhorn token choice": ((sinkhorn(2),), (sinkhorn(),)),
  "cost 2 - cost 1, expert choice": (TWO, ONE),
  "cost 2 - cost 1, Soft MoE": ((TWO_SOFT,), (SOFT,)),
  "dense with the FLOPs of cost 2 - dense": ((WIDE_DENSE,), (DENSE,)),
  "softmax token choice, balance 0.005 - 0.05": (
    (softmax(balance="0.005"),),
    (softmax(),),
  ),
  "softmax token choice, balance 0 - 0.05": (
    (softmax(balance="0"),),
    (softmax(),),
  ),
  "softmax token choice with balance 0.005 - dense": (
    (softmax(balance="0.005"),),
    (DENSE,),
  ),
  "softmax token choice with balance 0 - dense": (
    (softmax(balance="0"),),
    (DENSE,),
  ),
  "expert choice - softmax token choice with balance 0.005": (
    ONE,
    (softmax(balance="0.005"),),
  ),
  "expert choice - softmax token choice with balance 0": (
    ONE,
    (softmax(balance="0"),),
  ),
  "Sinkhorn - softmax token choice with balance 0": (
    (sinkhorn(),),
    (softmax(balance="0"),),
  ),
  "Soft MoE of equal FLOPs - softmax token choice with balance 0": (
    (EQUAL_SOFT,),
    (softmax(balance="0"),),
  ),
  "experts by position - dense": ((BY_POSITION,), (DENSE,)),
  "experts by position - softmax token choice": (
    (BY_POSITION,),
    (softmax(),),
  ),
}


def exploratory_table(cells: Sequence[Cell]) -> Table:
  """A row per contrast, a column per end point."""
  full = {
    text: [tuple(f"glyphs,router={row}" for row in side) for side in sides]
    for text, sides in CONTRASTS.items()
  }
  contrasts = tuple(PlannedContrast(text, *full[text]) for text in full)
  found = planned_results(cells, Analysis(END_POINTS, contrasts))
  rows: list[list[str | Estimate]] = []
  for number, contrast in enumerate(contrasts):
    differences = [
      each.paired.difference for each in found[number :: len(contrasts)]
    ]
    rows.append([contrast.text, str(differences[0].count), *differences])
  return Table(["difference", "seeds", *END_POINTS], rows, signed=True)


def without_failed_run(cells: Sequence[Cell]) -> Table:
  """The planned contrasts without one run."""
  rows_of_grid = {row.name for row in TABLES["glyphs_grid"]}
  left = [
    dataclasses.replace(
      cell,
      runs={
        seed: run
        for seed, run in cell.runs.items()
        if (cell.name, seed) != FAILED
      },
    )
    for cell in cells
    if cell.name in rows_of_grid
  ]
  return planned_table(left, PLANNED)


def main() -> None:
  """Writes the tables."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("roots", nargs="+", help="roots of sweeps, or reports")
  parser.add_argument("--out", type=pathlib.Path, required=True)
  args = parser.parse_args()
  # Of a model that several roots have, the one with the most runs.
  found = sorted(results.load(args.roots), key=lambda cell: len(cell.runs))
  cells = list({cell.name: cell for cell in found}.values())
  parts = [
    "## Exploratory differences in percentage points, by seed",
    exploratory_table(cells),
    "## The planned contrasts without the run of {}, seed {}".format(*FAILED),
    without_failed_run(cells),
  ]
  text = "\n\n".join(
    markdown_table(part.header, part.as_text())
    if isinstance(part, Table)
    else part
    for part in parts
  )
  (args.out / "exploratory.md").write_text(text + "\n")


if __name__ == "__main__":
  main()
