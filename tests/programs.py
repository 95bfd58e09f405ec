"""How the tests compile: in the process of pytest and in those they start."""

from importlib import metadata

# A tiny program takes far longer to compile than to run.
FAST_COMPILATION = [
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_cpu_parallel_codegen_split_count=1",
]
if metadata.version("jaxlib").startswith("0.10."):
  FAST_COMPILATION.append("--xla_cpu_use_fusion_emitters=false")


def xla_flags(devices: int) -> str:
  """XLA_FLAGS of a process with so many CPU devices."""
  count = f"--xla_force_host_platform_device_count={devices}"
  return " ".join([count, *FAST_COMPILATION])
