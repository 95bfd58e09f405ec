"""Opens a trained model: parameters, config and functions of images."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.typing import ArrayLike

from vmoe_study.checkpoint.load import (
  WEIGHTS,
  absolute,
  load_metadata,
  restore_trees,
)
from vmoe_study.config import Config, fit_to_devices, parse
from vmoe_study.data.classes import ClassNames
from vmoe_study.data.image_files import ImageLike, name_images
from vmoe_study.files.location import expand
from vmoe_study.nn.vit import VisionTransformer
from vmoe_study.parallel.sharding import to_global, to_local
from vmoe_study.run import data_dirs
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.config_file import override_config
from vmoe_study.run.experiment import Model
from vmoe_study.run.metadata import Metadata
from vmoe_study.run.predict import BATCH_SIZE, Prediction, Predictor


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A trained model on the devices of this process.

  Attributes:
    path: workdir of the run, or folder of an exported model.
    step: number of training steps of the parameters.
    params: the parameter tree; if the run keeps one, its moving average.
    router_state: router states; {} if no router has one.
    model: the module on its mesh, with compiled functions.
    class_names: names by class number; empty if the classes have only numbers;
      None if they are not known, as in checkpoints of earlier versions.
    unconfirmed: data folders, by field, that only the checkpoint's config
      names; see `run.data_dirs`.
    metadata: the metadata stored with the arrays, with the config of this model
      before it was fitted to the devices; None for a model made in memory.
  """

  path: epath.Path
  step: int
  params: Any = dataclasses.field(repr=False)
  router_state: Any = dataclasses.field(repr=False)
  model: Model = dataclasses.field(repr=False)
  class_names: ClassNames | None = None
  unconfirmed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  metadata: Metadata | None = dataclasses.field(default=None, repr=False)

  @property
  def variables(self) -> dict[str, Any]:
    """The variables for `module.apply`."""
    return {"params": self.params, "router_state": self.router_state}

  @property
  def config(self) -> Config:
    """The config, fitted to the number of devices here."""
    return self.model.config

  @property
  def module(self) -> VisionTransformer:
    """The Flax module as it is evaluated, with `config.evaluation_capacity`."""
    return self.model.evaluation_module

  def apply(self, images: ArrayLike) -> np.ndarray:
    """Logits of images, without noise or dropout.

    Images that are routed in groups compete for expert slots within their
    group. The last group is padded with blank images.

    Args:
      images: (N, H, W, C) floating point, in the shape and value range that
        `config.data.ops` produces.

    Returns:
      (N, num_classes) float32.

    Raises:
      ValueError: the shape or the dtype is a different one.

    >>> checkpoint = open_checkpoint("runs/digits")
    >>> checkpoint.apply(np.zeros((3, 8, 8, 1), np.float32)).shape
    (3, 10)
    """
    images = np.asarray(images)
    self._check(images)
    unit = self.model.mesh.size * self.config.group_images
    rows = [(0, -len(images) % unit), (0, 0), (0, 0), (0, 0)]
    batch = to_global(self.model.mesh, np.pad(images, rows))
    logits = self.model.predict(self.variables, batch)
    return to_local(logits)[: len(images)].astype(np.float32)

  def predict(
    self,
    images: ImageLike | Iterable[ImageLike],
    *,
    ops: str | None = None,
    batch_size: int = BATCH_SIZE,
  ) -> list[Prediction]:
    """Classes with probabilities for images of any size.

    Images that are routed in groups compete for expert slots, so their order
    matters. The last group is padded with black images.

    Args:
      images: paths or URLs of files and folders, bytes of files, or arrays,
        uint8 (H, W, C).
      ops: image operations; by default those of the first evaluation.
      batch_size: images per batch, rounded up to whole groups.

    Raises:
      ImageError: an image cannot be read; names it.
      ValueError: there are no operations, or they do not fit the model.

    >>> checkpoint = open_checkpoint("runs/digits")
    >>> [found] = checkpoint.predict([np.zeros((8, 8, 1), np.uint8)])
    >>> len(found.top(3)), found.probabilities.shape
    (3, (10,))
    """
    if isinstance(images, str | os.PathLike | bytes):
      images = [images]
    predictor = Predictor(
      self.model,
      self.variables,
      self.class_names,
      ops=ops,
      batch_size=batch_size,
    )
    predictions = []
    for batch in predictor.batches(name_images(images)):
      for error in batch.errors:
        raise error
      predictions += predictor.predict(batch)
    return predictions

  def _check(self, images: np.ndarray) -> None:
    if images.shape[1:] != self.model.image_shape or not len(images):
      wanted = ", ".join(map(str, self.model.image_shape))
      raise ValueError(
        f"images.shape={images.shape}: must be (N, {wanted}). Resize the "
        f"images as config.data.ops={self.config.data.ops!r} does."
      )
    if not np.issubdtype(images.dtype, np.floating):
      raise ValueError(
        f"images.dtype={images.dtype}: must be floating point. Scale the "
        f"images as config.data.ops={self.config.data.ops!r} does."
      )


def open_checkpoint(
  path: epath.PathLike,
  step: int | None = None,
  *,
  config: Config | None = None,
  overrides: Sequence[str] = (),
  trust_data_dirs: bool = False,
) -> Checkpoint:
  """Opens a trained model on the devices of this process.

  The number of devices may differ from the training run's. Neither the
  optimizer state nor any data are read. Later, `evaluate` and `inspect` read
  data only from folders that the caller has named or confirmed.

  Args:
    path: workdir of a run or of an imported checkpoint, or the folder of an
      exported model, such as a snapshot in the cache of a hub.
    step: step of the checkpoint; None for the newest intact one.
    config: config to use instead of the checkpoint's own.
    overrides: changes of fields of the config, "FIELD=VALUE".
    trust_data_dirs: whether data may be read from all folders that the
      checkpoint's config names.

  Raises:
    ValueError: the config is wrong, or does not fit the parameters.
    CheckpointError: there is no intact checkpoint.

  >>> checkpoint = open_checkpoint("runs/digits")
  >>> checkpoint.config.model.moe.router, checkpoint.step
  ('softmax_expert_choice', 23)
  """
  path = expand("path", path)
  directory = workdir_lib.checkpoints(path)
  values, _ = load_metadata(directory, step)
  metadata = Metadata.from_dict(values)
  is_trusted = trust_data_dirs or config is not None
  config = config or _own_config(path, metadata.config)
  config = override_config(config, overrides)
  folders = {} if is_trusted else data_dirs.unconfirmed(config, overrides)
  metadata = dataclasses.replace(metadata, config=config.to_dict())
  config = fit_to_devices(config, jax.device_count())
  model = Model(config, metadata.image_shape)
  # By default the newest step; a run in training may have saved another one.
  templates = {
    WEIGHTS: model.params_template(),
    "router_state": model.router_state_template(),
  }
  found, trees, _ = restore_trees(absolute(directory), step, templates)
  return Checkpoint(
    path=epath.Path(path),
    step=found,
    params=trees[WEIGHTS],
    router_state=trees["router_state"],
    model=model,
    class_names=metadata.class_names,
    unconfirmed=folders,
    metadata=metadata,
  )


def _own_config(path: epath.PathLike, values: Mapping[str, Any]) -> Config:
  if "data" not in values:
    raise ValueError(
      f"workdir={path}: imported without a config, so the model is known, but "
      "not what to evaluate. Give a config with this model: "
      "--config=FILE.py[:ARGUMENTS]."
    )
  return parse(values)
