"""The images of an inspection."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vmoe_study.data.classes import ClassNames, class_label
from vmoe_study.data.device_ops import DeviceOps
from vmoe_study.data.pipeline import EvalInput, eval_input
from vmoe_study.data.sources import open_source
from vmoe_study.inspection.measure import Batch
from vmoe_study.run.data_dirs import check_confirmed
from vmoe_study.run.experiment import Model
from vmoe_study.run.inputs import num_workers, to_devices


class EvaluationImages:
  """The first data set that a checkpoint's config evaluates.

  Attributes:
    name: name of the evaluation.
    class_names: name of each class.
  """

  def __init__(
    self,
    model: Model,
    unconfirmed: Mapping[str, str],
    class_names: ClassNames | None = None,
  ):
    """Opens the data set.

    Args:
      model: model of the checkpoint.
      unconfirmed: data folders of the checkpoint that must not be read.
      class_names: class names of the checkpoint; None if they are not known.

    Raises:
      ValueError: the config evaluates nothing, or the folder is unconfirmed.
      MissingDataError: the data set is not prepared; names the command.
    """
    if not model.config.evaluations:
      raise ValueError(
        "config.evaluations={}: must not be empty. Give a config "
        "with an evaluation: --config=FILE.py[:ARGUMENTS]."
      )
    self._model = model
    self.name, self._spec = next(iter(model.config.evaluations.items()))
    check_confirmed(unconfirmed, f"evaluations.{self.name}.")
    self._source = open_source(self._spec.data)
    own = self._source.class_names
    self._class_names = class_names
    self.class_names = [
      class_label(own if class_names is None else class_names, number)
      for number in range(model.config.data.num_classes)
    ]

  def batches(self, num_images: int) -> EvalInput:
    """Batches of images spread evenly over the data set.

    Args:
      num_images: number of images, rounded up to whole groups but not beyond
        the size of the data set.

    Raises:
      ValueError: the data set has fewer images than a group.
    """
    config = self._model.config
    group, total = config.group_images, len(self._source)
    count = min(-(-num_images // group), total // group) * group
    if not count:
      raise ValueError(
        f"model.moe.group_images={group}: must be at most {total}, the number "
        f"of images of {self.name}. Lower --config.model.moe.group_images."
      )
    unit = self._model.mesh.size * group
    return eval_input(
      self._spec.data,
      batch_size=min(self._spec.batch_size, -(-count // unit) * unit),
      class_names=self._class_names,
      indices=np.arange(count) * total // count,
      num_workers=num_workers(config),
      read_threads=config.train.read_threads,
    )

  def to_devices(self, batch: Batch) -> Any:
    """Sends a batch to the model's devices, in the form of model inputs."""
    device_ops = DeviceOps.of(self._spec.data)
    return to_devices(self._model.mesh, device_ops, batch)
