"""The HTML page of an inspection: a single, self-contained file."""

import functools
import math
from collections.abc import Mapping

import jinja2

from vmoe_study.drawing.page import page_template
from vmoe_study.inspection.result import Inspection
from vmoe_study.inspection.statistics import LayerStatistics
from vmoe_study.study.statistics import Estimate

TEMPLATE = "page.html.jinja"


def render_page(inspection: Inspection, pictures: Mapping[str, bytes]) -> str:
  """Renders the page.

  Args:
    inspection: the measurements.
    pictures: PNG files of `Inspection.figures`, by name.
  """
  return _template().render(inspection=inspection, pictures=pictures)


@functools.cache
def _template() -> jinja2.Template:
  filters = {
    "run_rows": _run_rows,
    "capacity_rows": _capacity_rows,
    "comparison_rows": _comparison_rows,
    "expert_rows": _expert_rows,
  }
  return page_template(__package__, TEMPLATE, filters)


def _run_rows(inspection: Inspection) -> list[tuple[str, str]]:
  rows = [
    ("router", inspection.router),
    ("checkpoint", f"step {inspection.step}"),
    ("images", f"{inspection.num_images:,} of {inspection.data}"),
    ("accuracy", _percent(inspection.accuracy)),
    ("tokens per image", str(inspection.tokens_per_image)),
  ]
  if inspection.layers:
    num_experts = len(next(iter(inspection.layers.values())).load)
    rows += [
      ("images per routing group", str(inspection.group_images)),
      ("experts", str(num_experts)),
    ]
    if inspection.capacity_factor is not None:
      slots = str(inspection.slots_per_expert)
      rows += [
        ("capacity factor", f"{inspection.capacity_factor:g}"),
        ("slots per expert and group", slots),
      ]
  return rows


def _capacity_rows(inspection: Inspection) -> list[tuple[str, ...]]:
  return [
    (
      f"{point.factor:g}",
      str(point.slots_per_expert),
      _percent(point.accuracy),
      _points(point.change),
    )
    for point in inspection.capacities
  ]


def _comparison_rows(inspection: Inspection) -> list[tuple[str, ...]]:
  """One row per quantity, with one column per layer."""
  columns = [_quantities(layer) for layer in inspection.layers.values()]
  return [
    (quantity, *(column[quantity] for column in columns))
    for quantity in columns[0]
  ]


def _quantities(layer: LayerStatistics) -> dict[str, str]:
  largest = f"{math.log(len(layer.load)):.3f}"
  information = layer.mutual_information
  shuffled, content = layer.shuffled_information, layer.content
  return {
    "load of the busiest expert": f"{layer.load.max():.3f}",
    "load of the least busy expert": f"{layer.load.min():.3f}",
    "unprocessed tokens": f"{layer.unprocessed:.2%}",
    "slots in use": f"{layer.slot_use.mean():.2%}",
    "patches with content": _share(content.patches),
    "dispatch weight on content": _share(content.dispatched),
    "unprocessed patches with content": _share(content.unprocessed_content),
    "unprocessed background": _share(content.unprocessed_background),
    "entropy of the router": f"{layer.router_entropy:.3f} of {largest} nats",
    "entropy of the load": f"{layer.load_entropy:.3f} of {largest} nats",
    "information between class and expert": f"{information:.4f} nats",
    "the same with classes shuffled": f"{shuffled:.4f} nats",
    "accuracy drop without any expert": _points(layer.accuracy_drop_all),
  }


def _expert_rows(layer: LayerStatistics) -> list[tuple[str, ...]]:
  return [
    (
      str(expert),
      f"{layer.load[expert]:.3f}",
      f"{layer.combine_weight[expert]:.4f}",
      f"{layer.slot_use[expert]:.1%}",
      _points(layer.accuracy_drop[expert]),
    )
    for expert in range(len(layer.load))
  ]


def _share(value: float) -> str:
  return "none" if math.isnan(value) else f"{value:.2%}"


def _percent(value: Estimate) -> str:
  return f"{100 * value.mean:.2f} ± {100 * value.half_width:.2f} %"


def _points(value: Estimate) -> str:
  return f"{100 * value.mean:+.2f} ± {100 * value.half_width:.2f} points"
