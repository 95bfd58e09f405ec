"""The data of a run: training batches, and evaluators with data sets."""

import dataclasses
import functools
import posixpath
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from vmoe_study.config import Config
from vmoe_study.console.progress import track
from vmoe_study.data import sources
from vmoe_study.data.classes import ClassNames, check_several, class_label
from vmoe_study.data.decode_rate import decode_rate, describe_rate
from vmoe_study.data.device_ops import DeviceOps
from vmoe_study.data.examples import Batch
from vmoe_study.data.pipeline import (
  EvalInput,
  TrainInput,
  eval_input,
  train_input,
)
from vmoe_study.data.sources import open_source
from vmoe_study.data.spec import DataSpec
from vmoe_study.data.workers import num_cores
from vmoe_study.evaluation.classification import ClassificationEvaluator
from vmoe_study.evaluation.fewshot import FewshotEvaluator, FewshotTask
from vmoe_study.evaluation.spec import FewshotSpec
from vmoe_study.parallel import hosts, sharding
from vmoe_study.run.experiment import Model
from vmoe_study.run.predict import PROBABILITIES
from vmoe_study.training.loss import LOSSES

# Maximum number of logits of an evaluation to keep, for average precision.
MAX_SCORES = 2**27


def num_workers(config: Config) -> int:
  """Number of worker processes of this host; see `TrainSpec`."""
  given = config.train.num_workers
  if given != "auto":
    return int(given)
  # On a CPU, the model needs the cores.
  return 0 if jax.default_backend() == "cpu" else max(1, num_cores() - 1)


def make_indices(config: Config, workdir: str) -> None:
  """Makes the indices of remote data sets, one host per file.

  The indices are stored next to the data, or in the workdir if the data are
  read-only.
  """
  specs = [config.data, *(spec.data for spec in config.mixture.values())]
  specs += [spec.data for spec in config.evaluations.values()]
  for task in config.fewshot.values():
    specs += [task.train, task.test]
  folder = posixpath.join(workdir, "offsets")
  count = jax.process_count()
  # Each host makes its share, then reads those of the others.
  for index, shares in ((jax.process_index(), count), (0, 1)):
    with hosts.raise_on_all_hosts():
      for spec in specs:
        sources.make_indices(spec, index, shares, folder)


def open_train_input(
  config: Config, class_names: ClassNames | None = None
) -> TrainInput:
  """Opens the training batches; returns this host's slices of them.

  Args:
    config: config of the run.
    class_names: class names of the run; None to take those of the training
      data.

  Raises:
    MissingDataError: if the data set is not prepared.
    ValueError: an example cannot be used, or classes do not fit the run.
  """
  mixture = [(spec.data, spec.weight) for spec in config.mixture.values()]
  data = train_input(
    [(config.data, 1.0), *mixture],
    batch_size=config.train.batch_size,
    seed=config.seed,
    class_names=class_names,
    shuffle=config.train.shuffle,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    num_workers=num_workers(config),
    read_threads=config.train.read_threads,
  )
  check_several(data.class_names)
  for note in data.notes:
    logging.warning("training data: %s", note)
  return data


def describe_workers(config: Config, data: TrainInput) -> str:
  """The decoding rate of this host, measured on images of the main data set."""
  rate = decode_rate(data.parts.readers[0])
  return describe_rate(rate, num_workers(config))


def make_evaluators(
  model: Model, class_names: ClassNames | None = None
) -> list:
  """Makes the evaluators of a config and opens their data.

  Arguments and errors are those of `classification_evaluators`.
  """
  return [
    *classification_evaluators(model, class_names),
    *fewshot_evaluators(model),
  ]


def classification_evaluators(
  model: Model, class_names: ClassNames | None = None
) -> list[ClassificationEvaluator]:
  """Makes an evaluator for each of `config.evaluations` and opens its data.

  Decodes a batch of each data set, so that a run does not start if its
  evaluation would fail.

  Args:
    model: model of the run.
    class_names: class names of the run, which number the classes of all
      evaluations; None if they are not known, so that each data set numbers its
      own.

  Raises:
    MissingDataError: a data set is not prepared.
    ValueError: an example cannot be used, images do not fit the model, the run
      does not have a class, or operations draw random numbers.
  """
  loss = model.config.train.loss
  evaluators = []
  for name, spec in model.config.evaluations.items():
    data = _open(
      model,
      f"evaluations.{name}.data",
      spec.data,
      spec.batch_size,
      class_names,
    )
    num_classes = spec.data.num_classes
    several = data.many_labels or loss == "sigmoid_xent"
    evaluators.append(
      ClassificationEvaluator(
        name,
        model.predict,
        functools.partial(DeviceBatches, model.mesh, data, name),
        LOSSES[loss],
        PROBABILITIES[loss],
        [class_label(data.class_names, n) for n in range(num_classes)],
        several and data.num_examples * num_classes <= MAX_SCORES,
      )
    )
  return evaluators


def fewshot_evaluators(model: Model) -> list[FewshotEvaluator]:
  """Makes the evaluator of `config.fewshot`, if it has tasks; opens its data.

  Raises:
    MissingDataError: a data set is not prepared.
    ValueError: an example cannot be used, images do not fit the model, or
      operations draw random numbers.
  """
  config = model.config
  if not config.fewshot:
    return []
  tasks = [
    _fewshot_task(model, name, spec) for name, spec in config.fewshot.items()
  ]

  def features(params, images):
    return sharding.to_local(model.features(params, images))

  return [
    FewshotEvaluator(
      "fewshot",
      features,
      tasks,
      config.shots,
      config.draw_seed,
      draws=config.draws,
      draw_rule=config.draw_rule,
    )
  ]


def _fewshot_task(model: Model, name: str, spec: FewshotSpec) -> FewshotTask:
  """A task with the classes of its training data."""
  train = model, f"fewshot.{name}.train", spec.train, spec.batch_size
  names = _open(*train).class_names  # Its images are chosen later.
  where = f"fewshot.{name}.test"
  test = _open(model, where, spec.test, spec.batch_size, names)
  return FewshotTask(
    name,
    open_source(spec.train).labels(),
    lambda indices: _LocalLabels(
      model.mesh, _open(*train, indices=indices), train[1]
    ),
    _LocalLabels(model.mesh, test, where),
    spec.train.num_classes,
  )


def _open(
  model: Model,
  where: str,
  data: DataSpec,
  batch_size: int,
  class_names: ClassNames | None = None,
  indices=None,
) -> EvalInput:
  """Opens a data set; decodes its first batch unless `indices` are given."""
  try:
    batches = eval_input(
      data,
      batch_size=batch_size,
      class_names=class_names,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
      indices=indices,
      num_workers=num_workers(model.config),
      read_threads=model.config.train.read_threads,
    )
    if indices is None:
      batches.decode_first()
      for note in batches.notes:
        logging.warning("%s: %s", where, note)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from error
  model.check_images(where, batches.image_shape)
  return batches


def to_devices(mesh: Mesh, device_ops: DeviceOps, batch: Batch) -> Any:
  """Sends a batch of bytes to the devices and converts it there.

  Args:
    mesh: mesh of the devices.
    device_ops: device operations of the batch's data set.
    batch: this host's rows.

  Returns:
    Global arrays, sharded by batch: float32 images and label vectors.
  """
  return _apply(device_ops, sharding.to_global(mesh, batch))


@functools.partial(jax.jit, static_argnums=0)
def _apply(device_ops: DeviceOps, batch: Any) -> Any:
  return device_ops(batch)


def _tracked(data: EvalInput, name: str) -> Iterator[Batch]:
  return track(data, f"evaluating {name}", len(data), "batches")


@dataclasses.dataclass(frozen=True)
class DeviceBatches:
  """The batches of an evaluation on the devices; can be iterated repeatedly.

  In addition to images, labels and mask, a batch has "index", the indices of
  the images in the data set.
  """

  mesh: Mesh
  data: EvalInput
  name: str

  def __iter__(self) -> Iterator[Any]:
    for step, batch in enumerate(_tracked(self.data, self.name)):
      rows = len(batch["mask"])
      start = (step * jax.process_count() + jax.process_index()) * rows
      batch["index"] = np.arange(start, start + rows, dtype=np.int32)
      yield to_devices(self.mesh, self.data.device_ops, batch)


@dataclasses.dataclass(frozen=True)
class _LocalLabels:
  """Like `DeviceBatches`, but labels and masks are this host's NumPy arrays."""

  mesh: Mesh
  data: EvalInput
  name: str

  def __iter__(self) -> Iterator[Batch]:
    ops = self.data.device_ops
    for batch in _tracked(self.data, self.name):
      images = to_devices(self.mesh, ops, batch)["image"]
      label = ops.label_vectors(batch["label"])
      yield {"image": images, "label": label, "mask": batch["mask"]}
