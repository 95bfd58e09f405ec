"""Importing checkpoints that claim much."""

import fsspec
import jax
import jax.numpy as jnp
import numpy as np

from vmoe_study.checkpoint.load import load_metadata
from vmoe_study.nn.vit import VisionTransformer
from vmoe_study.run import workdir as workdir_lib
from vmoe_study.run.import_checkpoint import import_checkpoint

from ..checkpoint.foreign import vmoe_writer as writer


def test_images_of_any_size_are_never_allocated(tmp_path):
  """A file of 1 MB, of a model for images of 40 GB."""
  module = VisionTransformer(
    num_classes=2, patch_size=500, width=1, depth=1, mlp_dim=1, num_heads=1
  )
  images = jax.ShapeDtypeStruct((1, 100_000, 100_000, 1), jnp.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
  params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
  memory = fsspec.filesystem("memory")
  writer.write(memory, "/huge/vmoe", params, shard_count=1, chunks=1)
  report = import_checkpoint("memory://huge/vmoe", tmp_path)
  assert report.complete
  metadata, _ = load_metadata(workdir_lib.checkpoints(tmp_path))
  assert metadata["image_shape"] == [100_000, 100_000, 1]
