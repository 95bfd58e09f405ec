"""Checks of the data: prepared, readable, with the right classes."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from vmoe_study import options
from vmoe_study.config import Config
from vmoe_study.data.classes import check_folders
from vmoe_study.data.decode_rate import decode_rate, describe_rate
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
from vmoe_study.run.inputs import num_workers
from vmoe_study.training.spec import TrainSpec

NUM_SHOWN = 3  # Number of unusable examples to list.
MAX_BATCH_SIZE = 64  # Of the training batch that is read.


@dataclasses.dataclass(frozen=True)
class DataField:
  """A field of the config that holds a `DataSpec`.

  Attributes:
    where: name of the field, such as "evaluations.test.data".
    spec: its value.
  """

  where: str
  spec: DataSpec

  @property
  def is_for_training(self) -> bool:
    """Whether the run trains on this data set."""
    return self.where.startswith(("data", "mixture."))

  @property
  def numbers_classes(self) -> bool:
    """Whether a head has the classes of this data set, in their order."""
    return self.is_for_training or self.where.endswith(".train")


def find_data_fields(values: Mapping[str, Any]) -> list[DataField]:
  """The data sets of a config, even if other fields are wrong.

  Leaves out invalid ones, which `config.parse` reports.
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
  valid = []
  for where, value in found.items():
    spec, problems = attempt(where, options.build, DataSpec, where, value)
    if not problems:
      valid.append(DataField(where, spec))
  return valid


def _mapping(value: Any) -> Mapping[str, Any]:
  return value if isinstance(value, Mapping) else {}


def check_data(
  field: DataField, probes: dict[DataSpec, Any]
) -> Iterator[Finding]:
  """Reads a sample of a data set; `probes` caches the results."""
  if field.spec not in probes:
    probes[field.spec] = attempt(field.where, probe, field.spec)
  found, problems = probes[field.spec]
  for problem in problems:
    yield dataclasses.replace(problem, subject=field.where)
  if found:
    yield Finding(OK, field.where, _describe(field.spec, found))
    if field.is_for_training:
      yield from attempt(field.where, check_folders, found)[1]
    for note in found.notes:
      yield Finding(NOTE, field.where, note)
    yield from _check_damage(field, found)
    yield from _check_classes(field, found)
  yield from check_ops(field)


def check_ops(field: DataField) -> Iterator[Finding]:
  """Checks the image operations; reads no data."""
  if not field.is_for_training and parse_ops(field.spec.ops).is_random:
    yield Finding(
      PROBLEM,
      field.where,
      f"ops={field.spec.ops!r}: operations of an evaluation must not draw"
      " random numbers. Use others, such as resize_small and central_crop.",
    )


def _describe(spec: DataSpec, found: Probe) -> str:
  shape = " x ".join(map(str, found.image_shape))
  labels = "no labels"
  if found.label_range:
    low, high = found.label_range
    labels = f"{found.num_labels_seen:,} different labels from {low} to {high}"
  return (
    f"{found.num_examples:,} examples in {spec.name} {spec.split}, of"
    f" {found.num_classes:,} classes; the {found.num_read:,} examples read have"
    f" images of {shape} after the operations, {labels}"
  )


def _check_damage(field: DataField, found: Probe) -> Iterator[Finding]:
  if not found.damaged:
    return
  shown = "\n".join(found.damaged[:NUM_SHOWN])
  text = f"{len(found.damaged)} of {found.num_read:,} examples cannot be used"
  if field.spec.on_error == "skip":
    yield Finding(NOTE, field.where, f"{text} and are skipped:\n{shown}")
    return
  yield Finding(
    PROBLEM,
    field.where,
    f"{text}:\n{shown}\nRepair or remove them, or have them skipped and counted"
    f" with --config.{field.where}.on_error=skip.",
  )


def _check_classes(field: DataField, found: Probe) -> Iterator[Finding]:
  declared, given = found.num_classes, field.spec.num_classes
  if found.class_names and not field.numbers_classes:
    return  # `classes.check_classes` compares the names.
  if declared > given:
    head = ", also for the model's head" if field.is_for_training else ""
    yield Finding(
      PROBLEM,
      field.where,
      f"num_classes={given}: must be at least {declared}, the number of classes"
      f" of the data set. Set num_classes={declared}{head}.",
    )
  elif declared < given and field.is_for_training:
    yield Finding(
      NOTE,
      field.where,
      f"num_classes={given}, but the data set has only {declared} classes: the"
      " others never occur",
    )


def check_batch(
  config: Config | None,
) -> tuple[TrainInput | None, list[Finding]]:
  """Reads the first training batch, with at most `MAX_BATCH_SIZE` images."""
  if config is None:
    reason = "because the config is invalid, see above"
    return None, [Finding(SKIPPED, "training batch", reason)]
  mixture = [(spec.data, spec.weight) for spec in config.mixture.values()]
  size = min(config.train.batch_size, MAX_BATCH_SIZE)
  data, problems = attempt(
    "training batch",
    train_input,
    [(config.data, 1.0), *mixture],
    batch_size=size,
    seed=config.seed,
  )
  if problems:
    # Problems of a single data set have been reported with its field.
    reason = "because the training data cannot be read, see above"
    mixed = [p for p in problems if "mixed data sets differ" in p.text]
    return None, mixed or [Finding(SKIPPED, "training batch", reason)]
  batch, problems = attempt("training batch", data.__getitem__, 0)
  if problems:
    return data, problems
  batch = data.device_ops(batch)
  labels = batch["label"]
  speed = describe_rate(decode_rate(data.parts.readers[0]), num_workers(config))
  return data, [
    _describe_batch(batch),
    Finding(OK, "input", speed),
    *_check_loss(config.train, labels),
  ]


def _describe_batch(batch: Mapping[str, np.ndarray]) -> Finding:
  parts = [
    f"{name} {array.dtype} {array.shape} from {array.min():g} to"
    f" {array.max():g}"
    for name, array in batch.items()
  ]
  return Finding(OK, "training batch", ", ".join(parts))


def _check_loss(train: TrainSpec, labels: np.ndarray) -> Iterator[Finding]:
  sums = labels.sum(axis=1)
  if train.loss == "softmax_xent" and sums.max() > 1.5:
    yield Finding(
      NOTE,
      "train.loss",
      "softmax_xent, but some images have several labels: sigmoid_xent treats"
      " every class separately",
    )


def check_shots(
  where: str, spec: DataSpec, shots: tuple[int, ...]
) -> Iterator[Finding]:
  """Reads the labels of few-shot training data, as an evaluation does."""
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
      f"{text}: {scarce} have fewer than the {max(shots)} of `shots`; all of"
      " their images are used",
    )
  else:
    yield Finding(OK, where, f"{text}, enough for shots={shots}")


def _labels(spec: DataSpec) -> np.ndarray:
  return open_source(spec).labels()
