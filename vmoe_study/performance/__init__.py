"""Speed and memory: resource estimates for TPUs, rooflines, benchmarks."""
