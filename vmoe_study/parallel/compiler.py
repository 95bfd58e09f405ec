"""Options of the compiler."""

from jax.sharding import Mesh


def compiler_options(mesh: Mesh) -> dict[str, str]:
  """Options for programs that exchange tokens, by the platform of the mesh.

  By default TPUs wait for an all-to-all. An asynchronous one takes more memory,
  and lets experts compute while tokens of others travel
  (`routing.exchange`).
  """
  if mesh.devices.flat[0].platform == "tpu" and mesh.shape["expert"] > 1:
    return {"xla_tpu_enable_async_all_to_all": "true"}
  return {}
