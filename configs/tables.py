"""The tables of the study: rows of configs with their published results.

  python -m configs.tables           the names of the tables
  python -m configs.tables NAME      its rows: command, expected result, source

Run a table with `python -m vmoe_study sweep configs/tables.py:NAME`.

A row without an expected result has no known published number: the full text of
the study (2401.15969) was not available when this was written. Expected numbers
hold for the data on which they were measured; JFT is not public.
"""

import argparse
import dataclasses
import itertools
import shlex
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vmoe_study.options import check_names
from vmoe_study.study.render import markdown_table

VMOE = "2106.05974"
VMOE_CONFIGS = "github.com/google-research/vmoe, vmoe/configs/vmoe_paper"
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
    recipe: file in configs/, without ".py".
    arguments: of that file.
    overrides: "FIELD=VALUE", changes of single fields of the config.
    expected: metric to percentage, as published.
    parameters: published number of parameters in millions, as printed.
    source: of the expected numbers.
    note: on how the numbers compare.
  """

  recipe: str
  arguments: Mapping[str, Any]
  overrides: tuple[str, ...] = ()
  expected: Mapping[str, float] = dataclasses.field(default_factory=dict)
  parameters: str = ""
  source: str = ""
  note: str = ""

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


def pretrain(**arguments: Any) -> Row:
  """A row of the recipe `pretrain`, without an expected result."""
  return Row("pretrain", arguments)


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


def _routers(**common: Any) -> Iterator[Row]:
  """Each router once, at cost 1, and the dense model.

  Sparse routers route groups of 8 images, Soft MoE single images.
  """
  for router in ("dense", "soft"):
    yield pretrain(router=router, **common)
  for router in (*TOKEN_CHOICE, *EXPERT_CHOICE):
    yield pretrain(router=router, group=8, **common)


def _backbones() -> Iterator[Row]:
  """All model families of both papers, each with its dense counterpart."""
  sparse = {"router": "softmax_token_choice", "k": 2, "group": 8}
  published = {
    "S8/32": ("", ""),
    "B/32": ("102.1", "980.6"),
    "B/16": ("100.5", "979.0"),
    "L/16": ("323.1", "3446"),
  }
  for backbone, counts in published.items():
    source = VMOE if any(counts) else ""
    for router, count in zip(
      ({"router": "dense"}, sparse), counts, strict=True
    ):
      row = pretrain(**router, backbone=backbone)
      yield _expect(row, source, parameters=count)
  for backbone in ("S/16", "B/16", "L/16", "H/14"):
    for name in ("dense", "soft"):
      yield pretrain(router=name, recipe="softmoe", backbone=backbone)


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
  ({"router": "soft"}, {_B32: (50.9, 69.7), _S16: (52.0, 70.8)}),
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
      row = pretrain(**arguments, recipe="softmoe", backbone=backbone)
      expected = dict(zip((PRECISION, TEN_SHOT), accuracy, strict=True))
      yield _expect(row, SOFT_MOE, note, expected=expected)


def _finetune() -> Iterator[Row]:
  """Starts from public V-MoE checkpoints, and from runs of table "study"."""
  start = {"start": B16_CHECKPOINT, "kind": "vmoe", "backbone": "B/16"}
  start |= {"router": "softmax_token_choice", "k": 2, "experts": 8}
  start |= {"group": 8, "capacity": 1.5}
  last = {**start, "start": S32_CHECKPOINT, "backbone": "S8/32"}
  metric = "ImageNet accuracy"
  for row, accuracy in (
    (Row("finetune", start), 85.6),
    (Row("finetune", last, ("model.moe.blocks=last 2 odd",)), 75.9),
  ):
    expected = {metric: accuracy}
    yield _expect(row, VMOE_CONFIGS, "mean of three seeds", expected=expected)
  cifar = {"data": "cifar10", "size": 128, "steps": 1000, "rate": 0.0015}
  row = Row(
    "finetune",
    {**start, **cifar},
    (
      "data.split=train[:98%]",
      "evaluations.val.data.split=train[98%:]",
      "train.schedule.warmup_steps=100",
    ),
  )
  metric = "CIFAR-10 accuracy"
  yield _expect(
    row, VMOE_CONFIGS, "mean of three seeds", expected={metric: 98.7}
  )
  twin = [("S8/32", "dense")]
  models = itertools.product((_B32, _B16), ("dense", *ROUTERS))
  for backbone, router in [*twin, *models]:
    arguments = {"start": "WORKDIR", "backbone": backbone, "router": router}
    yield Row("finetune", arguments)


LAPTOP_RATES = ("1e-3", "2e-3", "4e-3", "8e-3")
LAPTOP_BALANCES = ("0", "0.0005", "0.005", "0.05")


_ROUTING = {
  "router": "",
  "k": 1,
  "capacity": 1,
  "group": 1,
  "batch_priority": "false",
}


def _routing(row: Row) -> tuple[Any, ...]:
  """The routing arguments of a row, with defaults for those it lacks."""
  return tuple(row.arguments.get(*default) for default in _ROUTING.items())


def _laptop() -> Iterator[Row]:
  """The study at laptop size, with the published results of B/32 on JFT."""
  published = {
    _routing(row): row
    for row in _soft_moe()
    if row.arguments["backbone"] == _B32
  }
  for row in _sweep():
    ours, routing = dataclasses.replace(row, recipe="laptop"), _routing(row)
    if routing not in published:
      yield ours
      continue
    source, expected = f"{SOFT_MOE}, B/32", published[routing].expected
    note = "measured at another scale; only the ranking is comparable"
    yield _expect(ours, source, note, expected=expected)


def _laptop_rates() -> Iterator[Row]:
  """Learning rates for every router, evaluated on held-out images."""
  for row, rate in itertools.product(_routers(), LAPTOP_RATES):
    chosen = {"rate": rate, "balance": "0.005", "select": "true"}
    yield Row("laptop", {**row.arguments, **chosen})


def _laptop_balance() -> Iterator[Row]:
  """Weights of the balance losses of token choice, on held-out images."""
  for router, balance in itertools.product(TOKEN_CHOICE, LAPTOP_BALANCES):
    arguments = {"router": router, "group": 8}
    yield Row("laptop", {**arguments, "balance": balance, "select": "true"})


def _laptop_untuned() -> Iterator[Row]:
  """Token choice with the published weight of the balance losses, not tuned.

  It has as many tuning trials as the routers without these losses.
  """
  for router, group in itertools.product(TOKEN_CHOICE, (1, 8)):
    arguments = {"router": router, "group": group, "balance": "0.005"}
    yield Row("laptop", arguments)


TABLES: dict[str, tuple[Row, ...]] = {
  # The study: 32 experts; token choice with K and expert choice and Soft MoE
  # with capacity factor 1 and 2. JFT accuracy, then ImageNet 10-shot.
  "study": (*_sweep(backbone=_B32), *_sweep(backbone=_B16)),
  # The same routers on public data, and few-shot on nine data sets.
  "imagenet21k": tuple(
    _routers(backbone=_B16, data="imagenet21k", fewshot="many")
  ),
  "imagenet1k": tuple(
    _routers(backbone="S8/32", data="imagenet1k", fewshot="many")
  ),
  "soft_moe_9": tuple(_soft_moe()),
  "backbones": tuple(_backbones()),
  "finetune": tuple(_finetune()),
  "laptop": tuple(_laptop()),
  "laptop_rates": tuple(_laptop_rates()),
  "laptop_balance": tuple(_laptop_balance()),
  "laptop_untuned": tuple(_laptop_untuned()),
}


def markdown(name: str) -> str:
  """A table as Markdown; cells without a published number stay empty."""
  rows = []
  for row in TABLES[name]:
    expected = [f"{metric} {value}%" for metric, value in row.expected.items()]
    expected += [f"{row.parameters}M parameters"] if row.parameters else []
    command = shlex.join([f"--config={row.config}", *row.flags])
    notes = "; ".join(filter(None, [row.source, row.note]))
    rows.append([command, ", ".join(expected), notes])
  return markdown_table(["config", "expected", "source"], rows)


def main(words: Sequence[str] | None = None) -> None:
  """Prints tables; without names, the names of all tables."""
  parser = argparse.ArgumentParser(
    prog="python -m configs.tables", description="Prints tables of configs."
  )
  parser.add_argument("names", nargs="*", metavar="NAME", help="of a table")
  names = parser.parse_args(words).names
  try:
    check_names("tables", names, TABLES)
  except ValueError as error:
    parser.error(str(error))
  print("\n".join(map(markdown, names) if names else TABLES))


if __name__ == "__main__":
  # A reader that closes the pipe early, such as `head`, ends the program.
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)
  main()
