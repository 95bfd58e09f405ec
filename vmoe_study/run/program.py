"""A model as one program: images in, logits out, parameters inside.

The program is StableHLO in the container of `jax.export`. It runs on CPUs, GPUs
and TPUs with jax, numpy and flatbuffers alone; this package is not needed.

Images of different groups do not interact. So the model is traced for one group
and mapped over groups: the number of groups is symbolic, while the code of the
routers sees static shapes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from vmoe_study.data.augment import value_range
from vmoe_study.data.ops import parse_ops
from vmoe_study.routing.exchange import Exchange
from vmoe_study.run.checkpoint import Checkpoint
from vmoe_study.run.predict import evaluation_ops

PLATFORMS = ("cpu", "cuda", "tpu")
MAX_BYTES = 2**31  # Of a file of `jax.export`.


def make_program(checkpoint: Checkpoint) -> export.Exported:
  """Makes a program for all `PLATFORMS` that evaluates a model.

  The program maps uint8 images (N, H, W, C) to float32 logits (N, num_classes),
  those of `Checkpoint.apply`. The images are those after the image operations
  of the first evaluation; its value range is part of the program. N is any
  multiple of the images per routing group. Models in float32 agree to 1e-6,
  others to the rounding of their dtype.

  JAX must run on CPUs for the tracing, which leaves out kernels for other
  platforms.

  Raises:
    ValueError: the config evaluates nothing, the parameters are too large, or
      JAX computes on another platform.
  """
  _check(checkpoint)
  config, shape = checkpoint.config, checkpoint.model.image_shape
  module = checkpoint.module.clone(exchange=Exchange())
  variables = jax.tree.map(np.asarray, checkpoint.variables)
  limits = parse_ops(evaluation_ops(config)).value_range
  group = config.group_images

  def of_group(images):
    return module.apply(variables, value_range(images, *limits))[0]

  def logits(images):
    groups = images.reshape(-1, group, *shape)
    found = jax.vmap(of_group)(groups)
    return found.reshape(-1, found.shape[-1]).astype(jnp.float32)

  (count,) = export.symbolic_shape("groups")
  images = jax.ShapeDtypeStruct((group * count, *shape), jnp.uint8)
  return export.export(jax.jit(logits), platforms=PLATFORMS)(images)


def serialize(program: export.Exported) -> bytes:
  """The bytes of the program, for `jax.export.deserialize`.

  Raises:
    ValueError: the package flatbuffers is missing.
  """
  try:
    return bytes(program.serialize())
  except ImportError as error:
    raise ValueError(
      "programs are written and read with the package flatbuffers, which is "
      "not installed. Install the extra `export` of this package."
    ) from error


def _check(checkpoint: Checkpoint) -> None:
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(checkpoint.variables))
  if size >= MAX_BYTES:
    raise ValueError(
      f"the parameters have {size / 2**30:.1f} GiB: a program holds less than "
      f"{MAX_BYTES / 2**30:.0f}. Export a folder, with safetensors."
    )
  if jax.default_backend() != "cpu":
    raise ValueError(
      f"jax.default_backend()={jax.default_backend()!r}: programs are made on "
      "CPUs. Set JAX_PLATFORMS=cpu."
    )
