"""Compiler options of XLA."""

from jax.sharding import AbstractMesh, Mesh

from vmoe_study.parallel.mesh import slice_of

# libtpu 0.0.52 fails on larger v5e slices: "Async all-to-all not supported on
# limited ICI". v5p and v6e have no such limit.
_MAX_ASYNC_CHIPS = {"TPU v5 lite": 16}
_WITHOUT_SPARSECORES = {
  "xla_tpu_offload_gather_to_sparsecore": "false",
  "xla_tpu_enable_offloading_scatter_to_sparsecore": "false",
}


def compiler_options(mesh: Mesh | AbstractMesh) -> dict[str, str]:
  """Options for programs that exchange tokens, by the platform of the mesh.

  By default TPUs wait for an all-to-all. An asynchronous all-to-all takes more
  memory and lets some experts compute while the tokens of others are in transit
  (`routing.exchange`). v5e slices of more than 16 chips lack it.

  Routers gather and scatter a few thousand numbers, which v5p and v6e would
  leave to their SparseCores. jaxlib 0.10 cannot read such programs
  (`Compiled.as_text`).
  """
  if isinstance(mesh, AbstractMesh):  # Traced only.
    return {}
  devices = list(mesh.devices.flat)
  if devices[0].platform != "tpu":
    return {}
  options = dict(_WITHOUT_SPARSECORES)
  chips = sum(slice_of(device) == slice_of(devices[0]) for device in devices)
  has_async = chips <= _MAX_ASYNC_CHIPS.get(devices[0].device_kind, chips)
  if has_async and mesh.shape["expert"] > 1:
    options["xla_tpu_enable_async_all_to_all"] = "true"
  return options
