"""How fast the computation is and could be: plans, rooflines, benchmarks."""
