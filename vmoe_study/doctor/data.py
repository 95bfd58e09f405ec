"""Checks of the data: there, readable, with the right classes and shapes."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vmoe_study import options
from vmoe_study.config import Config, TrainSpec
from vmoe_study.data.ops import parse_ops
from vmoe_study.data.pipeline import TrainInput, train_input
from vmoe_study.data.probe import Probe, probe
from vmoe_study.data.sources import open_source
from vmoe_study.data.spec import DataSpec
from vmoe_study.doctor.finding import (
  NOTE,
  OK,
  PROBLEM,
  SKIPPED,
  Finding,
  attempt,
)

NUM_SHOWN = 3  # damaged examples
BATCH = 64  # images that are read as a batch, at most


@dataclasses.dataclass(frozen=True)
class Use:
  """A data set in a config, and what it is for.

  Attributes:
    where: the field, such as "evaluations.test.data".
    spec: that stands there.
  """

  where: str
  spec: DataSpec

  @property
  def trains(self) -> bool:
    """Whether it is training data."""
    return self.where.startswith(("data", "mixture."))


def find_uses(values: Mapping[str, Any]) -> list[Use]:
  """The data sets of a config that may be wrong elsewhere.

  What does not make a `DataSpec` is left out: `config.parse` says why.
  """
  found = {"data": values.get("data")}
  parts = {
    "mixture": ("data",),
    "evaluations": ("data",),
    "fewshot": ("train", "test"),
  }
  for kind, fields in parts.items():
    for name, item in _mapping(values.get(kind)).items():
      for field in fields:
        found[f"{kind}.{name}.{field}"] = _mapping(item).get(field)
  uses = []
  for where, value in found.items():
    spec, problems = attempt(where, options.build, DataSpec, where, value)
    if not problems:
      uses.append(Use(where, spec))
  return uses


def _mapping(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, Mapping) else {}


def check_data(use: Use, probes: dict[DataSpec, Any]) -> Iterator[Finding]:
  """Reads a part of a data set; `probes` keeps what was found."""
  if use.spec not in probes:
    probes[use.spec] = attempt(use.where, probe, use.spec)
  found, problems = probes[use.spec]
  for problem in problems:
    yield dataclasses.replace(problem, subject=use.where)
  if found:
    yield Finding(OK, use.where, _describe(use.spec, found))
    yield from _damage(use, found)
    yield from _classes(use, found)
  if not use.trains and parse_ops(use.spec.ops).is_random:
    yield Finding(
      PROBLEM,
      use.where,
      f"evaluation operations {use.spec.ops!r} draw random numbers; use"
      " deterministic ones such as resize_small and central_crop",
    )


def _describe(spec: DataSpec, found: Probe) -> str:
  shape = " x ".join(map(str, found.image_shape))
  labels = "no labels"
  if found.label_range:
    low, high = found.label_range
    labels = f"{found.num_labels_seen:,} classes, numbered {low} to {high}"
  return (
    f"{found.num_examples:,} examples in {spec.name} {spec.split}, of"
    f" {found.num_classes:,} classes; in the {found.num_read:,} that were read,"
    f" images of {shape} after the operations, {labels}"
  )


def _damage(use: Use, found: Probe) -> Iterator[Finding]:
  if not found.damaged:
    return
  shown = "\n".join(found.damaged[:NUM_SHOWN])
  text = f"{len(found.damaged)} of {found.num_read:,} examples cannot be used:"
  if use.spec.on_error == "skip":
    yield Finding(NOTE, use.where, f"{text} they will be skipped.\n{shown}")
    return
  yield Finding(
    PROBLEM,
    use.where,
    f"{text}\n{shown}\nMend or remove them, or pass over such examples, which"
    f" are then counted, with --config.{use.where}.on_error=skip.",
  )


def _classes(use: Use, found: Probe) -> Iterator[Finding]:
  declared, given = found.num_classes, use.spec.num_classes
  if declared > given:
    yield Finding(
      PROBLEM,
      use.where,
      f"num_classes={given}, but the data set has {declared} classes: a label"
      f" of {given} or more stops the run. Set num_classes={declared}"
      + (" and the model's head to it." if use.trains else "."),
    )
  elif declared < given:
    yield Finding(
      NOTE,
      use.where,
      f"num_classes={given}, but the data set has {declared} classes only: the"
      " others never occur.",
    )


def check_batch(
  config: Config | None,
) -> tuple[TrainInput | None, list[Finding]]:
  """Reads a batch as training does, of `BATCH` images at most."""
  if config is None:
    reason = "because the config is wrong, see above"
    return None, [Finding(SKIPPED, "training batch", reason)]
  mixture = [(spec.data, spec.weight) for spec in config.mixture.values()]
  size = min(config.train.batch_size, BATCH)
  data, problems = attempt(
    "training batch",
    train_input,
    [(config.data, 1.0), *mixture],
    batch_size=size,
    seed=config.seed,
  )
  if problems:
    # What is wrong with one of the data sets was said where it stands.
    reason = "because the training data cannot be read, see above"
    mixed = [p for p in problems if "mixed data sets differ" in p.text]
    return None, mixed or [Finding(SKIPPED, "training batch", reason)]
  batch, problems = attempt("training batch", data.__getitem__, 0)
  if problems:
    return data, problems
  return data, [*_batch(batch), *_label_kinds(config.train, batch["label"])]


def _batch(batch: Mapping[str, np.ndarray]) -> Iterator[Finding]:
  parts = [
    f"{name} {array.dtype} {array.shape} from {array.min():g} to"
    f" {array.max():g}"
    for name, array in batch.items()
  ]
  yield Finding(OK, "training batch", ", ".join(parts))


def _label_kinds(train: TrainSpec, labels: np.ndarray) -> Iterator[Finding]:
  sums = labels.sum(axis=1)
  if train.loss == "softmax_xent" and sums.max() > 1.5:
    yield Finding(
      NOTE,
      "train.loss",
      "softmax_xent, but some images have several labels: sigmoid_xent treats"
      " every class on its own.",
    )


def check_shots(
  where: str, spec: DataSpec, shots: tuple[int, ...]
) -> Iterator[Finding]:
  """Reads the labels of few-shot training data, as every run does."""
  labels, problems = attempt(where, _labels, spec)
  yield from problems
  if problems or not shots:
    return
  counts = np.bincount(labels, minlength=spec.num_classes)[: spec.num_classes]
  scarce = int((counts < max(shots)).sum())
  text = f"at least {counts.min()} images in each of {len(counts)} classes"
  if scarce:
    yield Finding(
      NOTE,
      where,
      f"{text}: {scarce} have fewer than the {max(shots)} of `shots`, and give"
      " what they have.",
    )
  else:
    yield Finding(OK, where, f"{text}, enough for shots={shots}")


def _labels(spec: DataSpec) -> np.ndarray:
  return open_source(spec).labels()
