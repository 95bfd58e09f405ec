"""One HTML page with all that an inspection found; it needs no other file."""

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

from vmoe_study.inspection.statistics import (
  CapacityPoint,
  Findings,
  LayerStatistics,
)
from vmoe_study.study.statistics import Estimate

STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 1100px; margin: 2em auto;
  padding: 0 1em; color: #222; }
img { max-width: 100%; height: auto; }
figure { margin: 1.5em 0; }
figcaption { color: #555; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { border-bottom: 1px solid #ccc; padding: 0.2em 0.8em; }
th { text-align: left; }
td + td, th + th { text-align: right; }
"""
NO_LAYERS = (
  "The model has no MoE layers: there is no router to look into, and no "
  "capacity to change."
)
NO_CURVES = "The run has recorded no routing metrics."
SOFT_CAPACITY = (
  "Slots of Soft MoE are parameters, so that their number cannot change "
  "after training."
)
READING = (
  "Load is tokens sent to an expert over the mean of all experts. An "
  "unprocessed token is taken by no expert: it passes the layer unchanged. "
  "Entropies and the information between class and expert, which is weighted "
  "by Combine, are in nats. The router's entropy is that of the softmax of its "
  "logits, without noise. An accuracy drop is what the model loses if an "
  "expert's output is set to zero while routing stays as it is."
)
READING_SOFT = (
  " In Soft MoE each slot is a mixture of all tokens: every expert has the "
  "same load, every slot is in use and every token reaches every expert. What "
  "differs is with what weights, so look at combine weights and pictures."
)


def page(findings: Findings, pictures: Mapping[str, bytes]) -> str:
  """The page.

  Args:
    findings: its numbers.
    pictures: PNG files by name: "training", "capacity" and "patches", where
      there are such, and for every layer those of `LAYER_PICTURES`, as
      "LAYER_NAME".
  """
  sections = {"Run": _run(findings)}
  if findings.layers:
    sections |= {
      "Load over training": _training(pictures),
      "Accuracy against capacity": _capacity(findings, pictures),
      "Patches and experts": _figure(pictures, "patches", PATCHES),
      "Layers compared": _layers(findings),
    }
  for layer, statistics in findings.layers.items():
    sections[layer] = _layer(layer, statistics, findings, pictures)
  title = escape(f"Inside the routers of {findings.name}")
  links = "\n".join(
    f'<li><a href="#{_anchor(name)}">{escape(name)}</a></li>'
    for name in sections
  )
  body = "\n".join(
    f'<section id="{_anchor(name)}">\n<h2>{escape(name)}</h2>\n{text}\n'
    "</section>"
    for name, text in sections.items()
  )
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
    f"<h1>{title}</h1>\n<nav>\n<h2>Contents</h2>\n<ul>\n{links}\n</ul>\n"
    f"</nav>\n{body}\n</body>\n</html>\n"
  )


PATCHES = (
  "Each patch in the colour, and with the number, of the expert that processes "
  "it; of several, the one with the largest combine weight. Patches without "
  "colour and number are unprocessed. On the left of an image, its class."
)
LAYER_PICTURES = {
  "charts": (
    "Load, mean combine weight, how many experts process a token, and by how "
    "many percentage points accuracy falls without each expert. A diamond "
    "marks a bar of height zero."
  ),
  "classes": (
    "Of each class, the share of combine weight that returns from each expert, "
    "in percent. If rows are alike, experts ignore classes. Numbers of tokens "
    "would not tell: where experts choose within one image, each takes equally "
    "many tokens of every class."
  ),
  "patches": (
    "The experts with the largest combine weight on these images: the more a "
    "patch stands out of the grey, the larger its combine weight. Patches that "
    "an expert takes are outlined, unless all experts take all of them."
  ),
  "tensors": (
    "The routing tensors of one group. A row is a token, with lines between "
    "images; a column is a slot, with lines between experts."
  ),
}


def _run(findings: Findings) -> str:
  rows = [
    ("router", findings.router),
    ("checkpoint", f"step {findings.step}"),
    ("images", f"{findings.num_images:,} of {findings.data}"),
    ("accuracy", _percent(findings.accuracy)),
    ("tokens per image", str(findings.tokens_per_image)),
  ]
  if not findings.layers:
    return _table(("", ""), rows) + _paragraph(NO_LAYERS)
  num_experts = len(next(iter(findings.layers.values())).load)
  rows += [
    ("images routed together", str(findings.group_images)),
    ("experts", str(num_experts)),
    ("capacity factor", f"{findings.capacity_factor:g}"),
    ("slots per expert and group", str(findings.slots_per_expert)),
  ]
  reading = READING + READING_SOFT * (findings.router == "soft")
  return (
    _table(("", ""), rows)
    + _paragraph("Intervals are 95% intervals over images.")
    + _paragraph(reading)
  )


def _training(pictures: Mapping[str, bytes]) -> str:
  if "training" not in pictures:
    return _paragraph(NO_CURVES)
  caption = (
    "Left: load of the busiest and of the least busy expert, in the batches of "
    "the steps that were reported. Right: share of tokens that no expert takes."
  )
  return _figure(pictures, "training", caption)


def _capacity(findings: Findings, pictures: Mapping[str, bytes]) -> str:
  if findings.router == "soft":
    return _paragraph(SOFT_CAPACITY)
  text = ""
  if findings.capacities:
    caption = (
      "One checkpoint, evaluated with more or fewer slots per expert. The "
      "change is from the accuracy above, image by image."
    )
    text += _figure(pictures, "capacity", caption)
    header = ("capacity factor", "slots per expert", "accuracy", "change")
    text += _table(header, [_capacity_row(p) for p in findings.capacities])
  for reason in findings.left_out:
    text += _paragraph(f"Left out: {reason}")
  return text


def _capacity_row(point: CapacityPoint) -> tuple[str, ...]:
  slots = str(point.slots_per_expert)
  change = _points(point.change)
  return f"{point.factor:g}", slots, _percent(point.accuracy), change


def _layers(findings: Findings) -> str:
  columns = {name: _numbers(s) for name, s in findings.layers.items()}
  quantities = next(iter(columns.values()))
  rows = [
    (quantity, *(column[quantity] for column in columns.values()))
    for quantity in quantities
  ]
  return _table(("", *columns), rows)


def _numbers(layer: LayerStatistics) -> dict[str, str]:
  most = math.log(len(layer.load))
  info = layer.mutual_information
  return {
    "load of the busiest expert": f"{layer.load.max():.3f}",
    "load of the least busy expert": f"{layer.load.min():.3f}",
    "unprocessed tokens": f"{layer.unprocessed:.2%}",
    "slots in use": f"{layer.slot_use.mean():.2%}",
    "entropy of the router": f"{layer.router_entropy:.3f} of {most:.3f} nats",
    "entropy of the load": f"{layer.load_entropy:.3f} of {most:.3f} nats",
    "information between class and expert": f"{info:.4f} nats",
    "the same with classes shuffled": f"{layer.shuffled_information:.4f} nats",
    "accuracy drop without any expert": _points(layer.accuracy_drop_all),
  }


def _layer(
  name: str,
  layer: LayerStatistics,
  findings: Findings,
  pictures: Mapping[str, bytes],
) -> str:
  header = (
    "expert",
    "load",
    "combine weight",
    "slots in use",
    "accuracy drop without it",
  )
  rows = [
    (
      str(expert),
      f"{layer.load[expert]:.3f}",
      f"{layer.combine_weight[expert]:.4f}",
      f"{layer.slot_use[expert]:.1%}",
      _points(layer.accuracy_drop[expert]),
    )
    for expert in range(len(layer.load))
  ]
  figures = [
    _figure(pictures, f"{name}_{kind}", caption)
    for kind, caption in LAYER_PICTURES.items()
  ]
  return "".join([figures[0], _table(header, rows), *figures[1:]])


def _figure(pictures: Mapping[str, bytes], name: str, caption: str) -> str:
  data = base64.b64encode(pictures[name]).decode()
  alt = escape(f"{name}: {caption}")
  return (
    f'<figure>\n<img alt="{alt}" src="data:image/png;base64,{data}">\n'
    f"<figcaption>{escape(caption)}</figcaption>\n</figure>\n"
  )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
  head = f"<tr>{head}</tr>\n" if any(header) else ""
  body = "\n".join(
    "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    for row in rows
  )
  return f"<table>\n{head}{body}\n</table>\n"


def _paragraph(text: str) -> str:
  return f"<p>{escape(text)}</p>\n"


def _percent(value: Estimate) -> str:
  return f"{100 * value.mean:.2f} ± {100 * value.half_width:.2f} %"


def _points(value: Estimate) -> str:
  return f"{100 * value.mean:+.2f} ± {100 * value.half_width:.2f} points"


def _anchor(name: str) -> str:
  return name.lower().replace(" ", "-")
