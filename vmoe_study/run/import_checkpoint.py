"""Converts a public V-MoE checkpoint to a checkpoint in a new workdir."""

from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from vmoe_study.checkpoint.adapt import MatchReport, match_params
from vmoe_study.checkpoint.foreign.architecture import (
  infer_image_shape,
  infer_model,
)
from vmoe_study.checkpoint.foreign.vmoe import read_vmoe
from vmoe_study.checkpoint.store import CheckpointStore
from vmoe_study.config import Config
from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.spec import ModelSpec
from vmoe_study.nn.vit import VisionTransformer
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.metadata import Metadata


def import_checkpoint(
  prefix: str,
  workdir: epath.PathLike,
  *,
  image_size: int | None = None,
  config: Config | None = None,
) -> MatchReport:
  """Reads a V-MoE checkpoint and saves it as step 0 of a new workdir.

  Args:
    prefix: common prefix of the files PREFIX.index and PREFIX.data-*; local
      path or URL.
    workdir: workdir to create.
    image_size: side of the square images in pixels; needed if the model has no
      learned positions to infer it from.
    config: config of a run with this model, which makes `evaluate` work on the
      workdir. By default the metadata has only the model, inferred from shapes.

  Returns:
    A report of which arrays were used.

  Raises:
    ValueError: the arrays do not fit the model, or the image size is missing or
      contradicts them.
    CheckpointError: a file is damaged.
  """
  source = read_vmoe(prefix)
  image_shape = _image_shape(source, image_size)
  if config:
    values, spec = config.to_dict(), config.model
  else:
    values = {"name": "imported", "model": infer_model(source)}
    spec = _model_spec(values["model"])
  params, report = match_params(source, _shapes(spec, image_shape))
  if not report.complete:
    raise ValueError(
      f"{prefix}: does not fit the model: {report}\nEvery array must be used. "
      "Give the config of a model with these shapes."
    )
  store = CheckpointStore(workdir_lib.checkpoints(workdir))
  store.save(
    0, params, None, Metadata(values, image_shape).to_dict(), wait=True
  )
  store.close()
  return report


def _image_shape(
  source: dict[str, Any], size: int | None
) -> tuple[int, int, int]:
  learned = infer_image_shape(source)
  if learned:
    if size not in (None, learned[0]):
      raise ValueError(
        f"image_size={size}: must be {learned[0]}, the size of the learned "
        "positions. Leave it out; `train` with initialize.kind='vmoe' resizes "
        "positions."
      )
    return learned
  if size is None:
    raise ValueError(
      "image_size=None: must be given, as this model has no learned positions "
      "to infer it from. Give --image-size=PIXELS."
    )
  return size, size, source["embedding"]["kernel"].shape[2]


def _model_spec(model: dict[str, Any]) -> ModelSpec:
  moe = MoeOptions(**model.get("moe", {}))
  return ModelSpec(fields=model["fields"], moe=moe)


def _shapes(spec: ModelSpec, image_shape: tuple[int, int, int]) -> Any:
  """Shapes and dtypes of a model's parameters."""
  module = VisionTransformer(**spec.arguments())
  shape = (spec.moe.group_images, *image_shape)
  images = jax.ShapeDtypeStruct(shape, jnp.float32)
  return jax.eval_shape(module.init, jax.random.key(0), images)["params"]
