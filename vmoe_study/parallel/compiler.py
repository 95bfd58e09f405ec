"""Options of the compiler."""

from jax.sharding import AbstractMesh, Mesh


def compiler_options(mesh: Mesh | AbstractMesh) -> dict[str, str]:
  """Options for programs that exchange tokens, by the platform of the mesh.

  By default TPUs wait for an all-to-all. An asynchronous one takes more memory,
  and lets experts compute while tokens of others travel
  (`routing.exchange`).
  """
  if isinstance(mesh, AbstractMesh):  # Traced only.
    return {}
  if mesh.devices.flat[0].platform == "tpu" and mesh.shape["expert"] > 1:
    return {"xla_tpu_enable_async_all_to_all": "true"}
  return {}
