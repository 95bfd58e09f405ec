"""Compiler options of XLA."""

from jax.sharding import AbstractMesh, Mesh


def compiler_options(mesh: Mesh | AbstractMesh) -> dict[str, str]:
  """Options for programs that exchange tokens, by the platform of the mesh.

  By default TPUs wait for an all-to-all. An asynchronous all-to-all takes more
  memory and lets some experts compute while the tokens of others are in transit
  (`routing.exchange`).
  """
  if isinstance(mesh, AbstractMesh):  # Traced only.
    return {}
  if mesh.devices.flat[0].platform == "tpu" and mesh.shape["expert"] > 1:
    return {"xla_tpu_enable_async_all_to_all": "true"}
  return {}
