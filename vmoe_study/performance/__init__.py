"""Speed and memory: resource estimates, rooflines, benchmarks."""
