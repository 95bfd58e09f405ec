"""Styles of cells in the figures: labels, colours, shapes, intervals."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence

from matplotlib.lines import Line2D

from vmoe_study.drawing.labels import name_label, shortened
from vmoe_study.study.results import Cell
from vmoe_study.study.settings import (
  RUN,
  differing_fields,
  field_text,
  settings,
)
from vmoe_study.study.statistics import Estimate, estimate

# The palette of Okabe and Ito, which colour-blind readers can tell apart.
COLOURS = {
  "dense": "#000000",
  "softmax_token_choice": "#56B4E9",
  "sinkhorn_token_choice": "#0072B2",
  "sparsity_constrained_token_choice": "#999999",
  "softmax_expert_choice": "#E69F00",
  "sinkhorn_expert_choice": "#D55E00",
  "sparsity_constrained_expert_choice": "#CC79A7",
  "soft": "#009E73",
}
# Other routers, in alphabetical order; from the muted palette of Paul Tol.
OTHER_COLOURS = (
  "#8C564B",
  "#332288",
  "#44AA99",
  "#999933",
  "#882255",
  "#AA4499",
  "#DDCC77",
  "#117733",
)
MARKERS = {0.0: "s", 1.0: "o", 2.0: "^"}
LABEL_WIDTH, VALUE_WIDTH = 80, 24  # Letters of a label, and of a value in it.


def labels(cells: Sequence[Cell]) -> list[str]:
  """Describes each cell: "softmax token choice, K=2, 8 im., priority".

  The label of a run that its settings do not distinguish includes its name.

  Args:
    cells: all cells of the figure; what they have in common is left out, and
      `usual_values`.
  """
  names, rows, _ = settings(cells)
  usual = usual_values(cells)
  return [
    _label(
      {
        name: text
        for name, text in zip(names, row, strict=True)
        if text != usual.get(name)
      }
    )
    for row in rows
  ]


def usual_values(cells: Sequence[Cell]) -> dict[str, str]:
  """Values that more than half of the cells share, by field of the config."""
  usual = {}
  for name in differing_fields(cells):
    texts = Counter(field_text(cell, name) for cell in cells)
    text, count = texts.most_common(1)[0]
    if 2 * count > len(cells):
      usual[name] = text
  return usual


def _label(texts: dict[str, str]) -> str:
  words = [texts.pop("router").replace("_", " ")]
  if RUN in texts:
    return name_label(f"{texts[RUN]}, {words[0]}", LABEL_WIDTH)
  chosen, capacity = texts.pop("K", ""), texts.pop("capacity", "")
  words += [f"K={chosen}"] if chosen else []
  if capacity and not (chosen and capacity == "1"):
    words.append(f"capacity {capacity}")
  group, priority = texts.pop("group", ""), texts.pop("batch priority", "")
  words += [f"{group} im."] if group else []
  words += ["priority"] if priority == "yes" else []
  words += [setting(name, value) for name, value in texts.items()]
  return name_label(", ".join(words), LABEL_WIDTH)


def setting(name: str, value: str) -> str:
  """A field of the config and its value, such as "mlp_dim=160"."""
  return f"{name.rpartition('.')[2]}={shortened(value, VALUE_WIDTH)}"


def cell_colours(cells: Sequence[Cell]) -> list[str]:
  """The colour of every cell: that of its router, or its own."""
  if have_own_colours(cells):
    return list(COLOURS.values())[: len(cells)]
  colours = router_colours(cells)
  return [colours[cell.router] for cell in cells]


def have_own_colours(cells: Sequence[Cell]) -> bool:
  """Whether there are few cells that styles by router do not distinguish.

  Such a style is the colour of the router, the shape of the cost and the
  filling of the group size.
  """
  smallest = min(groups(cells), default=1)
  looks = {(c.router, c.cost, c.group_images <= smallest) for c in cells}
  return len(looks) < len(cells) <= len(COLOURS)


def router_colours(cells: Sequence[Cell]) -> dict[str, str]:
  """The colour of every router of these cells."""
  routers = dict.fromkeys(cell.router for cell in cells)
  others = zip(sorted(routers - COLOURS.keys()), itertools.cycle(OTHER_COLOURS))
  colours = COLOURS | dict(others)
  return {router: colours[router] for router in routers}


def marker(cell: Cell) -> str:
  """The shape of a cell."""
  return MARKERS.get(cell.cost, "D")


def groups(cells: Sequence[Cell]) -> list[int]:
  """The numbers of images per group that occur, ascending."""
  return sorted({cell.group_images for cell in cells if cell.router != "dense"})


def look(cell: Cell, cells: Sequence[Cell], colour: str) -> dict[str, str]:
  """The point of a cell: filled if its groups are the smallest ones."""
  filled = cell.group_images <= min(groups(cells), default=1)
  face = colour if filled else "white"
  return {"marker": marker(cell), "color": colour, "markerfacecolor": face}


def shapes(cells: Sequence[Cell]) -> list[Line2D]:
  """Legend entries for the shapes, if there are several."""
  costs = sorted({cell.cost for cell in cells if cell.cost})
  return [
    handle(
      f"K x capacity = {cost:g}", marker=MARKERS.get(cost, "D"), color="grey"
    )
    for cost in (costs if len(costs) > 1 else ())
  ]


def handle(text: str, **style: str) -> Line2D:
  """A legend entry."""
  return Line2D([], [], ls="", label=text, **style)


def percent_label(metric: str) -> str:
  """The label of an axis."""
  return f"{name_label(metric, VALUE_WIDTH)} (%)"


def percent(cell: Cell, metric: str) -> Estimate:
  """A metric of a cell in percent."""
  return estimate([100 * value for value in cell.values(metric)])


def half_width(found: Estimate) -> float | None:
  """Half-width of the error bar; None for a single run."""
  return None if math.isnan(found.half_width) else found.half_width
