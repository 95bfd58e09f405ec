"""The tables of the study: rows of configs with their published results.

  python -m configs.tables           a description of every table and its paper
  python -m configs.tables NAME      its rows: command, expected result, source

Run a table with `python -m vmoe_study sweep configs/tables.py:NAME`.

"Not published" means that no number is known here: the full text of the study
(2401.15969) was not available when the tables were written. Expected numbers
hold for the data on which they were measured; JFT is not public.
"""

import argparse
import dataclasses
import itertools
import shlex
import signal
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from configs.common import BALANCED_BY_LOSSES, tokens_choose
from configs.datasets import FEWSHOT
from configs.glyphs import TRANSFER
from vmoe_study.drawing.render import markdown_table
from vmoe_study.nn.cost import routing
from vmoe_study.nn.vit import VisionTransformer
from vmoe_study.nn.zoo import ROUTERS as ZOO
from vmoe_study.options import check_names
from vmoe_study.performance.data_sizes import image_side
from vmoe_study.run.config_file import load_config
from vmoe_study.study.planned import Analysis, PlannedContrast

VMOE = "2106.05974"
VMOE_CONFIGS = "github.com/google-research/vmoe, vmoe/configs/vmoe_paper"
NOT_PUBLISHED = "not published"
SOFT_MOE = "2308.00951, Table 9 (JFT-4B)"

TOKEN_CHOICE = ("softmax_token_choice", "sinkhorn_token_choice")
EXPERT_CHOICE = (
  "softmax_expert_choice",
  "sinkhorn_expert_choice",
  "sparsity_constrained_expert_choice",
)
ROUTERS = (*TOKEN_CHOICE, *EXPERT_CHOICE, "soft")
PRECISION, TEN_SHOT = "JFT precision@1", "ImageNet 10-shot"
CHECKPOINTS = "gs://vmoe_checkpoints/"
B16_CHECKPOINT = CHECKPOINTS + "vmoe_b16_imagenet21k_randaug_strong"
S32_CHECKPOINT = CHECKPOINTS + "vmoe_s32_last2_ilsvrc2012_randaug_light1"


@dataclasses.dataclass(frozen=True)
class Row:
  """A config and its expected result.

  Attributes:
    recipe: name of a file in configs/, without ".py".
    arguments: arguments of that file.
    overrides: changes of single fields of the config, "FIELD=VALUE".
    expected: published percentage by metric.
    parameters: published number of parameters in millions, as printed.
    source: source of the expected numbers.
    note: remark on the comparability of the numbers.
  """

  recipe: str
  arguments: Mapping[str, Any]
  overrides: tuple[str, ...] = ()
  expected: Mapping[str, float] = dataclasses.field(default_factory=dict)
  parameters: str = ""
  source: str = ""
  note: str = ""

  @property
  def results(self) -> str:
    """The published numbers, or "not published"."""
    found = [f"{metric} {value}%" for metric, value in self.expected.items()]
    found += [f"{self.parameters}M parameters"] if self.parameters else []
    return ", ".join(found) or NOT_PUBLISHED

  @property
  def name(self) -> str:
    """Name of the row, and of the folder for its runs."""
    values = [f"{name}={value}" for name, value in self.arguments.items()]
    return ",".join([self.recipe, *values, *self.overrides]).replace("/", "-")

  @property
  def config(self) -> str:
    """The value of the option `--config`."""
    words = [f"{name}={value}" for name, value in self.arguments.items()]
    return f"configs/{self.recipe}.py:{','.join(words)}"

  @property
  def flags(self) -> list[str]:
    """The overrides as options of the command line."""
    return [f"--config.{override}" for override in self.overrides]


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows that are run together; iterating yields the rows.

  Attributes:
    about: the paper and the part of it that the table reproduces.
    rows: the rows.
    analysis: contrasts planned before the runs, if there are any.
  """

  about: str
  rows: tuple[Row, ...]
  analysis: Analysis | None = None

  def __iter__(self) -> Iterator[Row]:
    return iter(self.rows)


def pretrain(*overrides: str, **arguments: Any) -> Row:
  """A row of the recipe `pretrain`, without an expected result."""
  return Row("pretrain", arguments, overrides)


def _expect(row: Row, source: str, note: str = "", **fields: Any) -> Row:
  return dataclasses.replace(row, source=source, note=note, **fields)


def _sweep(**common: Any) -> Iterator[Row]:
  """Six routers at two costs and two group sizes, and the dense model."""
  yield pretrain(router="dense", **common)
  for group, cost in itertools.product((1, 8), (1, 2)):
    for router, batch_priority in itertools.product(
      TOKEN_CHOICE, ("false", "true")
    ):
      yield pretrain(
        router=router,
        k=cost,
        group=group,
        batch_priority=batch_priority,
        **common,
      )
    for router in EXPERT_CHOICE:
      yield pretrain(router=router, capacity=cost, group=group, **common)
  for cost in (1, 2):
    yield pretrain(router="soft", capacity=cost, **common)


def _study(backbone: str) -> Iterator[Row]:
  """The sweep at equal slots, and Sinkhorn with the losses of softmax."""
  for row in _sweep(backbone=backbone):
    if row.arguments["router"] not in TOKEN_CHOICE:
      yield row
      continue
    arguments = {**row.arguments, "capacity": 1}
    yield Row("pretrain", arguments)
    if row.arguments["router"] == "sinkhorn_token_choice":
      yield Row("pretrain", {**arguments, "balance": 0.005})


def _routers(**common: Any) -> Iterator[Row]:
  """Each router once, at cost 1, and the dense model.

  Sparse routers route groups of 8 images, Soft MoE single images.
  """
  yield pretrain(router="dense", **common)
  yield pretrain(router="soft", capacity=1, group=1, **common)
  for router in TOKEN_CHOICE:
    yield pretrain(router=router, k=1, capacity=1, group=8, **common)
  for router in EXPERT_CHOICE:
    yield pretrain(router=router, capacity=1, group=8, **common)


_IMAGENET_NOTE = (
  "here these are val, test, real and v2; images without a ReaL label count as "
  "wrong, unlike in other papers"
)


def _imagenet(*accuracies: float) -> dict[str, float]:
  """On the four test sets of the public V-MoE configs."""
  names = ("train[99%:]", "ILSVRC2012 validation", "ReaL", "ImageNet V2")
  return dict(zip(names, accuracies, strict=True))


def _imagenet1k() -> Iterator[Row]:
  """The unchanged public recipe, then other routers in it."""
  data = {"backbone": "S8/32", "data": "imagenet1k", "fewshot": "many"}
  yield _expect(
    pretrain(router="softmax_token_choice", **data),
    f"{VMOE_CONFIGS}/vmoe_s32_last2_ilsvrc2012_randaug_light1.py",
    f"mean of three seeds; {_IMAGENET_NOTE}",
    expected=_imagenet(76.8, 73.1, 74.4, 59.2),
  )
  yield from _routers(**data)


def _imagenet21k() -> Iterator[Row]:
  """The pre-training of the checkpoint in table "finetune"; other routers."""
  data = {"backbone": _B16, "data": "imagenet21k", "fewshot": "many"}
  note = f"makes {B16_CHECKPOINT}, whose fine-tuning has published results"
  row = pretrain(router="softmax_token_choice", **data)
  yield dataclasses.replace(row, note=note)
  yield from _routers(**data)


def _backbones() -> Iterator[Row]:
  """The models of V-MoE, each with its dense counterpart."""
  published = {
    "S8/32": ("", ""),
    "B/32": ("102.1", "980.6"),
    "B/16": ("100.5", "979.0"),
    "L/32": ("", ""),
    "L/16": ("323.1", "3446"),
    "H/14": ("", ""),
  }
  for backbone, counts in published.items():
    source = VMOE if any(counts) else ""
    for router, count in zip(
      ("dense", "softmax_token_choice"), counts, strict=True
    ):
      row = pretrain(router=router, backbone=backbone)
      yield _expect(row, source, parameters=count)


def _soft_moe_models() -> Iterator[Row]:
  """The three models of the public config, on each of its backbones."""
  for backbone in ("S/16", "S/14", "B/16", "L/16", "H/14"):
    for router in ("dense", "softmax_expert_choice", "soft"):
      yield pretrain(router=router, recipe="softmoe", backbone=backbone)


def _placement() -> Iterator[Row]:
  """Which blocks are routed: by V-MoE's rules, and the last half."""
  yield pretrain(router="dense", backbone=_B32)
  for router, blocks in itertools.product(
    ("softmax_token_choice", "softmax_expert_choice", "soft"),
    ("every 2", "last 6", "last 2 odd", "last 2"),
  ):
    yield pretrain(f"model.moe.blocks={blocks}", router=router, backbone=_B32)


# The `mlp_dim` of `nn.cost.dense_mlp_dim` for a sparse router in groups of 8
# images, at costs 1 and 2, and for Soft MoE.
_EQUAL_MLP_DIM = {
  "B/32": (3019, 4616, 3550, 4557),
  "B/16": (3072, 4600, 3177, 4818),
}


def _dense_controls() -> Iterator[Row]:
  """Dense models with the FLOPs of an MoE model."""
  for backbone, sizes in _EQUAL_MLP_DIM.items():
    routed = [
      pretrain(router=router, capacity=cost, **more, backbone=backbone)
      for router, more in (
        ("softmax_expert_choice", {"group": 8}),
        ("soft", {}),
      )
      for cost in (1, 2)
    ]
    for row, size in zip(routed, sizes, strict=True):
      control = pretrain(router="dense", mlp=size, backbone=backbone)
      yield dataclasses.replace(control, note=f"FLOPs of {row.name}")


def _throughput() -> Iterator[Row]:
  """Training speed: 200 steps, for which the report shows images/s."""
  short = ("train.num_steps=200", "train.schedule.warmup_steps=20")
  for backbone in (_B32, _B16):
    for row in _routers(backbone=backbone, fewshot="none"):
      yield dataclasses.replace(row, overrides=short)


# 2308.00951, Table 9: arguments, then JFT and 10-shot accuracy by backbone.
_TC = {"router": "softmax_token_choice", "group": 8}
_EC = {"router": "softmax_expert_choice"}
_BATCH_PRIORITY = {**_TC, "batch_priority": "true"}
_B32, _B16, _S16 = "B/32", "B/16", "S/16"
_SOFT_MOE_9 = (
  (
    {"router": "dense"},
    {_B32: (48.0, 63.4), _B16: (52.0, 71.8), _S16: (47.9, 60.8)},
  ),
  (
    {**_BATCH_PRIORITY, "k": 1, "capacity": 1},
    {_B32: (49.7, 66.2), _B16: (53.7, 74.4), _S16: (51.2, 68.9)},
  ),
  (
    {**_BATCH_PRIORITY, "k": 2, "capacity": 1},
    {_B32: (50.2, 67.4), _B16: (53.9, 74.7)},
  ),
  (
    {**_BATCH_PRIORITY, "k": 2, "capacity": 2},
    {_B32: (51.0, 69.5), _B16: (54.4, 75.7)},
  ),
  (
    {**_EC, "group": 8, "capacity": 1},
    {_B32: (49.9, 66.0), _B16: (54.2, 74.5), _S16: (51.3, 68.7)},
  ),
  ({**_EC, "group": 8, "capacity": 2}, {_B16: (54.6, 75.6)}),
  (
    {**_EC, "group": 1, "capacity": 1},
    {_B32: (48.4, 63.8), _B16: (53.3, 73.0), _S16: (50.5, 67.4)},
  ),
  ({**_EC, "group": 1, "capacity": 2}, {_B16: (53.1, 73.9)}),
  (
    {"router": "soft", "capacity": 1},
    {_B32: (50.9, 69.7), _S16: (52.0, 70.8)},
  ),
  # One slot per expert, as in the public config.
  ({"router": "soft", "experts": 128}, {_B16: (55.3, 77.0)}),
)
_SOFT_MOE_9_CAPACITY_UNKNOWN = (
  ({**_TC, "k": 1}, {_S16: (50.1, 64.5)}),
  ({**_TC, "k": 2}, {_S16: (52.5, 71.0)}),
  ({**_BATCH_PRIORITY, "k": 2}, {_S16: (52.8, 71.4)}),
)


def _soft_moe() -> Iterator[Row]:
  known = itertools.product(_SOFT_MOE_9, [""])
  unknown = itertools.product(
    _SOFT_MOE_9_CAPACITY_UNKNOWN, ["capacity not stated"]
  )
  for (arguments, accuracies), note in [*known, *unknown]:
    for backbone, accuracy in accuracies.items():
      arguments = {"experts": 32, **arguments, "backbone": backbone}
      row = pretrain("train.num_steps=300000", **arguments, recipe="softmoe")
      expected = dict(zip((PRECISION, TEN_SHOT), accuracy, strict=True))
      yield _expect(row, SOFT_MOE, note, expected=expected)


def _finetune() -> Iterator[Row]:
  """Fine-tuning of public V-MoE checkpoints, and of runs of table "study"."""
  b16 = {"start": B16_CHECKPOINT, "upstream": "imagenet21k", "backbone": _B16}
  s32 = {"start": S32_CHECKPOINT, "upstream": "imagenet1k"}
  s32["backbone"] = "S8/32"
  cifar = {"data": "cifar10", "size": 128, "steps": 1000, "rate": 0.0015}
  cifar_overrides = (
    "data.split=train[:98%]",
    "evaluations.val.data.split=train[98%:]",
    "train.schedule.warmup_steps=100",
  )
  for file, arguments, overrides, note, expected in (
    (
      "vmoe_b16_imagenet21k_randaug_strong_ft_ilsvrc2012.py",
      b16,
      (),
      _IMAGENET_NOTE,
      _imagenet(89.2, 85.6, 84.1, 76.1),
    ),
    (
      "vmoe_s32_last2_ilsvrc2012_randaug_light1_ft_ilsvrc2012.py",
      s32,
      (),
      _IMAGENET_NOTE,
      _imagenet(78.8, 75.9, 77.1, 62.0),
    ),
    (
      "vmoe_b16_imagenet21k_randaug_strong_ft_cifar10.py",
      {**b16, **cifar},
      cifar_overrides,
      "here this is test",
      {"CIFAR-10 test": 98.7},
    ),
  ):
    vmoe = {"router": "softmax_token_choice", "kind": "vmoe"}
    row = Row("finetune", {**vmoe, **arguments}, overrides)
    note = f"mean of three seeds; {note}"
    yield _expect(row, f"{VMOE_CONFIGS}/{file}", note, expected=expected)
  start = {"start": "WORKDIR"}
  yield Row("finetune", {**start, "router": "dense", "backbone": "S8/32"})
  for backbone in (_B32, _B16):
    for row in _sweep(backbone=backbone):
      if row.arguments.get("batch_priority") != "true":
        yield Row("finetune", {**start, **row.arguments})


def _glyphs_trial(
  router: str, rate: float = 6e-3, decay: float = 0.3, **more: Any
) -> Row:
  """A run on the validation designs of Han characters."""
  arguments: dict[str, Any] = {"router": router, "rate": rate}
  if router in TOKEN_CHOICE + EXPERT_CHOICE:
    arguments["group"] = 8
  if router == "softmax_token_choice":
    arguments["balance"] = 0.05
  arguments |= {"decay": decay, **more, "select": "true"}
  return Row("glyphs", arguments)


def _glyphs_gate() -> Iterator[Row]:
  """Dense models of one and two times the FLOPs, and MoE models."""
  yield _glyphs_trial("dense")
  yield _glyphs_trial("softmax_token_choice")
  yield _glyphs_trial("dense", width=60)
  yield _glyphs_trial("softmax_expert_choice")
  yield _glyphs_trial("soft")


# Peak learning rate and weight decay.
_GLYPHS_TRIALS = (
  *itertools.product((6e-3, 9e-3), (0.1, 0.3)),
  (12e-3, 0.3),
  (9e-3, 0.6),
)


def _glyphs_tuning() -> Iterator[Row]:
  """Six trials of every router and the dense model, each a whole run.

  At half the epochs models have not left the plateau where training begins.
  """
  for router in ("dense", *ROUTERS):
    for rate, decay in _GLYPHS_TRIALS:
      yield _glyphs_trial(router, rate, decay)


# The rates of the two best trials of seed 0, at decay 0.3, which get seed 1.
_GLYPHS_FINALISTS = {
  router: (9e-3, 6e-3 if router == "dense" else 12e-3)
  for router in ("dense", *ROUTERS)
}


def _glyphs_finalists() -> Iterator[Row]:
  """The two best trials of every router and the dense model."""
  for router, rates in _GLYPHS_FINALISTS.items():
    for rate in rates:
      yield _glyphs_trial(router, rate)


def _cell(router: str, cost: int = 1, **more: Any) -> dict[str, Any]:
  """Arguments of a cell of a grid: a router with `cost` slots per token."""
  if router in TOKEN_CHOICE:
    return {"router": router, "k": cost, "capacity": 1, "group": 8, **more}
  if router in EXPERT_CHOICE:
    return {"router": router, "capacity": cost, "group": 8, **more}
  if router == "soft":
    return {"router": router, "capacity": cost, **more}
  return {"router": router, **more}


_COSTS = (1, 2)
_EXPERT_CHOICE_CELLS = [
  _cell(router, cost) for router in EXPERT_CHOICE for cost in _COSTS
]
_TOKEN_CHOICE_CELLS = [
  _cell(router, cost) for router in TOKEN_CHOICE for cost in _COSTS
]
_BATCH_PRIORITY_CELLS = [
  {**cell, "batch_priority": "true"} for cell in _TOKEN_CHOICE_CELLS
]
_SINGLE_IMAGE_CELLS = [
  _cell(router, group=1)
  for router in ("softmax_token_choice", "softmax_expert_choice")
]
_GRID = [
  _cell("dense"),
  *_EXPERT_CHOICE_CELLS,
  *_TOKEN_CHOICE_CELLS,
  *_BATCH_PRIORITY_CELLS,
  *(_cell("soft", cost) for cost in _COSTS),
  *_SINGLE_IMAGE_CELLS,
]


def _planned(
  row: Callable[[Mapping[str, Any]], Row],
  end_points: Mapping[str, tuple[str, ...]],
  best_sparse: Mapping[str, Any],
  best_routed: Mapping[str, Any],
  soft: Mapping[str, Any],
) -> Analysis:
  """The five contrasts of a grid (notebooks/study/PLAN.md).

  Args:
    row: the row of a cell.
    end_points: metrics by end point.
    best_sparse: the cell of the best sparse router, chosen before the grid.
    best_routed: the cell of the best router, chosen before the grid.
    soft: the cell of Soft MoE that is compared with the best sparse router.
  """

  def names(cells: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(row(cell).name for cell in cells)

  token_choice = [*_TOKEN_CHOICE_CELLS, *_BATCH_PRIORITY_CELLS]
  softmax, sinkhorn = (
    [cell for cell in token_choice if cell["router"] == router]
    for router in TOKEN_CHOICE
  )
  contrasts = (
    PlannedContrast(
      "expert choice against token choice",
      names(_EXPERT_CHOICE_CELLS),
      names(_TOKEN_CHOICE_CELLS),
    ),
    PlannedContrast(
      "expert choice against token choice with batch priority",
      names(_EXPERT_CHOICE_CELLS),
      names(_BATCH_PRIORITY_CELLS),
      margin=0.5,
    ),
    PlannedContrast(
      "Soft MoE against the best sparse router",
      names([soft]),
      names([best_sparse]),
    ),
    PlannedContrast(
      "Sinkhorn against softmax token choice",
      names(sinkhorn),
      names(softmax),
    ),
    PlannedContrast(
      "the best MoE model against the dense model",
      names([best_routed]),
      names([_cell("dense")]),
    ),
  )
  return Analysis(end_points, contrasts)


def _imagenet1k_row(cell: Mapping[str, Any]) -> Row:
  """A cell of the grid at the study's size, B/32 with 32 experts."""
  size = {"data": "imagenet1k", "backbone": _B32, "experts": 32}
  return pretrain(**cell, **size, fewshot="many")


# `_EQUAL_MLP_DIM` of the grid on ImageNet-1k, whose routed blocks are two.
_IMAGENET_MLP_DIM = {1: 3054, 2: 3587}


def _imagenet1k_grid() -> Iterator[Row]:
  """All cells, and dense models with the FLOPs of expert choice."""
  yield from map(_imagenet1k_row, _GRID)
  for cost, size in _IMAGENET_MLP_DIM.items():
    routed = _imagenet1k_row(_cell("softmax_expert_choice", cost))
    control = _imagenet1k_row(_cell("dense", mlp=size))
    yield dataclasses.replace(control, note=f"FLOPs of {routed.name}")


# What differs from the arguments of `glyphs.py`, by the tuning
# (notebooks/study/PLAN.md).
_GLYPHS_RECIPES: dict[str, dict[str, Any]] = {
  "softmax_token_choice": {"balance": 0.05},
  "sinkhorn_token_choice": {"rate": 12e-3},
  "softmax_expert_choice": {"rate": 12e-3},
  "sparsity_constrained_expert_choice": {"rate": 12e-3},
  "soft": {"rate": 12e-3},
}
_GLYPHS_BEST = _cell("softmax_token_choice")
# The `mlp_dim` at which Soft MoE has the FLOPs of sparse routers at cost 1, and
# a dense model those of expert choice at cost 2 (`nn.cost`).
_GLYPHS_SOFT = _cell("soft", mlp=150)
_GLYPHS_DENSE = _cell("dense", mlp=242)


def _glyphs_row(cell: Mapping[str, Any]) -> Row:
  """A cell of the grid on Han characters, with the recipe of its router."""
  return Row("glyphs", {**cell, **_GLYPHS_RECIPES.get(cell["router"], {})})


def _glyphs_grid() -> Iterator[Row]:
  """All cells, and two models with the FLOPs of others."""
  yield from map(_glyphs_row, _GRID)
  for cell, other in (
    (_GLYPHS_SOFT, _GLYPHS_BEST),
    (_GLYPHS_DENSE, _cell("softmax_expert_choice", 2)),
  ):
    note = f"FLOPs of {_glyphs_row(other).name}"
    yield dataclasses.replace(_glyphs_row(cell), note=note)


def _glyphs_pairs() -> Iterator[Row]:
  """The rows that are compared one by one, and so get more seeds."""
  cells = (_cell("dense"), _GLYPHS_SOFT, _GLYPHS_BEST)
  names = {_glyphs_row(cell).name for cell in cells}
  yield from (row for row in _glyphs_grid() if row.name in names)


def _glyphs_controls() -> Iterator[Row]:
  """The best router of the grid with less balance, and fixed experts."""
  yield _glyphs_row(_cell("dense"))
  best = _glyphs_row(_GLYPHS_BEST)
  for balance, note in ((0.005, "balance weight of 2106.05974"), (0, "")):
    arguments = {**best.arguments, "balance": balance}
    yield dataclasses.replace(best, arguments=arguments, note=note)
  yield next(
    row for row in _glyphs_zoo() if row.arguments["router"] == "identity"
  )


def _glyphs_zoo() -> Iterator[Row]:
  """The other routers at cost 1, and the dense model of the grid."""
  yield _glyphs_row(_cell("dense"))
  for router, spec in ZOO.items():
    if router in ROUTERS:
      continue
    cell = {"router": router, "capacity": 1}
    if tokens_choose(router):
      balance = 0.05 if router in BALANCED_BY_LOSSES else 0
      cell |= {"k": 1, "group": 8, "balance": balance}
    elif spec.guarantees.slots != "a mean":
      cell |= {"group": 8}
    yield Row("glyphs", cell)


TABLES: dict[str, Table] = {
  "study": Table(
    "2401.15969: six routers with 32 experts, at cost 1 and 2. Data, groups, "
    "batch priority, blocks and the rounding of capacities are our choice; "
    "Sinkhorn token choice has no balance losses, and rows with them beside it",
    (*_study(_B32), *_study(_B16)),
  ),
  "soft_moe_9": Table(
    "2308.00951, Table 9: routers on JFT-4B, 300,000 steps",
    tuple(_soft_moe()),
  ),
  "soft_moe": Table(
    "2308.00951, public config for JFT-4B: dense, expert choice and Soft MoE "
    "with 128 or 256 experts, 4,000,000 steps (H/14: 2,000,000)",
    tuple(_soft_moe_models()),
  ),
  "imagenet1k": Table(
    "2106.05974, public config of V-MoE-S/32 on ILSVRC2012, the only result "
    "from scratch on public data; other routers in the same recipe",
    tuple(_imagenet1k()),
  ),
  "imagenet1k_grid": Table(
    "Of no paper: the grid of the small study on ImageNet-1k, at the size of "
    "2401.15969, in the recipe of 2106.05974, with the planned contrasts; the "
    "best routers are those of 2308.00951, Table 9",
    tuple(_imagenet1k_grid()),
    _planned(
      _imagenet1k_row,
      {
        "ILSVRC2012 validation": ("test/accuracy",),
        "10-shot": tuple(f"fewshot/{name}/10shot" for name in FEWSHOT["many"]),
      },
      best_sparse=_cell("softmax_expert_choice"),
      best_routed=_cell("soft"),
      soft=_cell("soft"),
    ),
  ),
  "imagenet21k": Table(
    "2106.05974, public config of V-MoE-B/16 on ImageNet-21k; other routers in "
    "the same recipe",
    tuple(_imagenet21k()),
  ),
  "backbones": Table(
    "2106.05974: the model sizes of V-MoE with 32 experts, on JFT",
    tuple(_backbones()),
  ),
  "finetune": Table(
    "2106.05974, public configs of fine-tuning; and, for 2401.15969, the "
    'models of table "study" on ImageNet',
    tuple(_finetune()),
  ),
  "placement": Table(
    "Of no paper: the placement of MoE blocks, by the rules of 2106.05974 "
    "(every 2, last n odd) and of 2308.00951 (last half)",
    tuple(_placement()),
  ),
  "dense_controls": Table(
    'Of no paper: dense models with the FLOPs of models of table "study"',
    tuple(_dense_controls()),
  ),
  "throughput": Table(
    'Of no paper: images per second of the models of table "study"',
    tuple(_throughput()),
  ),
  "glyphs_gate": Table(
    "Of no paper: whether the data of the small study can tell models apart",
    tuple(_glyphs_gate()),
  ),
  "glyphs_tuning": Table(
    "Of no paper: how the recipe of every model of the small study is chosen",
    tuple(_glyphs_tuning()),
  ),
  "glyphs_finalists": Table(
    "Of no paper: the best two trials of every model, which get a second seed",
    tuple(_glyphs_finalists()),
  ),
  "glyphs_grid": Table(
    "The comparison of 2401.15969 on Han characters, with the planned "
    "contrasts; nothing is published at this scale",
    tuple(_glyphs_grid()),
    _planned(
      _glyphs_row,
      {
        "test": ("test/accuracy",),
        "10-shot": tuple(
          f"fewshot/{name.split('/')[-1]}/10shot" for name in TRANSFER
        ),
      },
      best_sparse=_GLYPHS_BEST,
      best_routed=_GLYPHS_BEST,
      soft=_GLYPHS_SOFT,
    ),
  ),
  "glyphs_pairs": Table(
    "Of no paper: the cells of the small study that are compared one by one, "
    "which get 16 seeds",
    tuple(_glyphs_pairs()),
  ),
  "glyphs_controls": Table(
    "Of no paper: the best router of the small study with other weights of the "
    "balance losses, and experts chosen by position",
    tuple(_glyphs_controls()),
  ),
  "glyphs_zoo": Table(
    "Of no paper: the other routers of ROUTERS.md at cost 1, not tuned",
    tuple(_glyphs_zoo()),
  ),
}

# Public configs of these papers that are in no table, and why.
NO_COUNTERPART = {
  "2308.00951, pretrain_laion.py": "image and text towers with a contrastive "
  "loss on LAION-400M; only image classifiers are trained here",
  "2110.03360, configs/eee_paper": "ensembles of experts within a V-MoE model; "
  "there are none here",
  "2106.05974, V-MoE-S/32 after 1,000 epochs of ILSVRC2012 (randaug_medium)": (
    "released weights without a public config"
  ),
}


def actual_capacity(row: Row) -> str:
  """The capacity factor of training, after rounding; and of evaluations."""
  config = load_config(row.config, row.overrides)
  side, found = image_side(config.data.ops), []
  for moe in (config.model.moe, config.evaluation_moe):
    module = VisionTransformer(**{**config.model.arguments(), "moe": moe})
    if sizes := routing(module, (side, side, 3)):
      found.append(f"{sizes.capacity_factor:.3g}")
  if config.evaluation_capacity:
    return " in training, ".join(found) + " in evaluation"
  return found[0] if found else ""


def markdown(name: str) -> str:
  """A table as Markdown, below its description."""
  rows = []
  for row in TABLES[name]:
    command = shlex.join([f"--config={row.config}", *row.flags])
    notes = "; ".join(filter(None, [row.source, row.note]))
    rows.append([command, actual_capacity(row), row.results, notes])
  header = ["config", "actual capacity factor", "expected", "source"]
  return f"{TABLES[name].about}.\n\n{markdown_table(header, rows)}"


def overview() -> str:
  """A paragraph per table: name, description, number of published results.

  Then the public configs without a counterpart.
  """
  texts = []
  for name, table in TABLES.items():
    published = sum(row.results != NOT_PUBLISHED for row in table)
    count = f"{len(table.rows)} rows, {published} with published results"
    text = textwrap.fill(f"{table.about} ({count}).", 76)
    texts.append(f"{name}\n{textwrap.indent(text, '  ')}")
  texts.append("\nWithout a counterpart here:")
  for config, reason in NO_COUNTERPART.items():
    texts.append(
      textwrap.indent(textwrap.fill(f"{config}: {reason}.", 76), "  ")
    )
  texts.append(
    '"not published", in rows: no number is known here. JFT is not public.'
  )
  return "\n".join(texts)


def main(words: Sequence[str] | None = None) -> None:
  """Prints tables; without names, an overview of all tables."""
  parser = argparse.ArgumentParser(
    prog="python -m configs.tables", description="Prints tables of configs."
  )
  parser.add_argument("names", nargs="*", metavar="NAME", help="of a table")
  names = parser.parse_args(words).names
  try:
    check_names("tables", names, TABLES)
  except ValueError as error:
    parser.error(str(error))
  print("\n".join(map(markdown, names)) if names else overview())


if __name__ == "__main__":
  # A reader that closes the pipe early, such as `head`, ends the program.
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)
  main()
