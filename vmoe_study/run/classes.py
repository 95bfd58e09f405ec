"""The class names of a run, whose order numbers its classes.

They are stored in the checkpoints of the run. A new run takes those of its
training data, in their order. If it starts from a run that has all of these
classes, it takes over the head of that run, and with it the names and numbers
of the classes.
"""

from absl import logging
from etils import epath

from vmoe_study.checkpoint.load import absolute, complete_steps, load_metadata
from vmoe_study.config import Config, InitializeSpec
from vmoe_study.data.classes import (
  ClassNames,
  number_classes,
  training_classes,
)
from vmoe_study.data.sources import open_source
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.metadata import Metadata


def known_classes(
  config: Config, workdir: epath.PathLike | None
) -> ClassNames | None:
  """The class names of a run that are not taken from its training data.

  Args:
    config: config of the run.
    workdir: workdir of the run; None if it has none yet.

  Returns:
    The names in the checkpoints of the run, or otherwise those of the head that
    it starts from; None if there are none.

  Raises:
    ValueError: the run starts from another one, and its training data have no
      valid classes.
    CheckpointError: a checkpoint is damaged, or that of the other run is
      missing.
  """
  if workdir is not None:
    directory = absolute(workdir_lib.checkpoints(workdir))
    if complete_steps(directory):
      names = _metadata(workdir).class_names
      if names is None:
        logging.warning(
          "%s: its checkpoints have no class names; those of the training data "
          "are used",
          workdir,
        )
      return names
  return _inherited(config)


def source_classes(spec: InitializeSpec) -> ClassNames | None:
  """The class names of the checkpoint that a run starts from, if it has any."""
  return _metadata(spec.path).class_names if spec.kind == "checkpoint" else None


def _inherited(config: Config) -> ClassNames | None:
  """The class names of the head that a run takes over, if it does."""
  if config.initialize.kind != "checkpoint":
    return None
  source = _metadata(config.initialize.path)
  names, fields = source.class_names, source.config["model"]["fields"]
  num_classes = config.model.fields["num_classes"]
  if names is None or fields["num_classes"] != num_classes:
    return None
  data = [config.data, *(spec.data for spec in config.mixture.values())]
  own = training_classes([open_source(spec) for spec in data], num_classes)
  try:
    number_classes(own, names, num_classes)
  except ValueError:
    return None  # Other classes: the head is initialized.
  return names


def _metadata(workdir: epath.PathLike) -> Metadata:
  values, _ = load_metadata(workdir_lib.checkpoints(workdir))
  return Metadata.from_dict(values)
