"""Converts a public V-MoE checkpoint into one of ours."""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

from vmoe_study.checkpoint.adapt import match_params
from vmoe_study.checkpoint.foreign.architecture import (
  infer_image_shape,
  infer_model,
)
from vmoe_study.checkpoint.foreign.import_vmoe import read_vmoe
from vmoe_study.checkpoint.store import CheckpointStore
from vmoe_study.cli import config_flags
from vmoe_study.config import ModelSpec
from vmoe_study.nn.moe import MoeOptions
from vmoe_study.nn.vit import VisionTransformer
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.metadata import Metadata


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Declares the command's options."""
  parser.add_argument(
    "--prefix",
    required=True,
    metavar="PATH",
    help="of the files PATH.index and PATH.data-*; local or gs://",
  )
  parser.add_argument(
    "--out", required=True, metavar="DIR", help="a new workdir"
  )
  parser.add_argument(
    "--image-size",
    type=int,
    metavar="PIXELS",
    help="of square images; needed if the model's positions are not learned, "
    "for else they tell it",
  )
  parser.add_argument(
    "--config",
    metavar="FILE.py[:ARGUMENTS]",
    help="the run that the model is for: then `evaluate` works on DIR; by "
    "default only the model is recorded, as far as its shapes tell it",
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  if args.overrides and not args.config:
    raise ValueError(
      f"{' '.join(args.overrides)}: there is no config to override. Give one "
      "with --config."
    )
  source = read_vmoe(args.prefix)
  image_shape = _image_shape(source, args.image_size)
  if args.config:
    found = config_flags.load(args)
    config, spec = found.to_dict(), found.model
  else:
    config = {"name": "imported", "model": infer_model(source)}
    spec = _model_spec(config["model"])
  params, report = match_params(source, _shapes(spec, image_shape))
  if not report.complete:
    raise ValueError(
      f"{args.prefix} does not fit the model: {report}\nEvery array must be "
      "used. Give the --config of a model with these shapes."
    )
  metadata = Metadata(config, image_shape).to_dict()
  store = CheckpointStore(workdir_lib.checkpoints(args.out))
  store.save(0, params, None, metadata, wait=True)
  store.close()
  print(f"{report}\nwritten to {args.out}")
  return 0


def _image_shape(
  source: dict[str, Any], size: int | None
) -> tuple[int, int, int]:
  found = infer_image_shape(source)
  if found is None and size is None:
    raise ValueError(
      "The positions of this model are not learned, so that nothing tells the "
      "size of its images. Give --image-size=PIXELS."
    )
  if found and size not in (None, found[0]):
    raise ValueError(
      f"--image-size={size}: the learned positions are of {found[0]} pixels. "
      "Leave it out; `train` with initialize.kind='vmoe' resizes positions."
    )
  return found or (size, size, source["embedding"]["kernel"].shape[2])


def _model_spec(model: dict[str, Any]) -> ModelSpec:
  moe = MoeOptions(**model.get("moe", {}))
  return ModelSpec(fields=model["fields"], moe=moe)


def _shapes(spec: ModelSpec, image_shape: tuple[int, int, int]) -> Any:
  """Shapes and dtypes of a model's parameters."""
  module = VisionTransformer(**spec.arguments())
  images = jnp.zeros((spec.moe.group_images, *image_shape))
  return jax.eval_shape(module.init, jax.random.key(0), images)["params"]
