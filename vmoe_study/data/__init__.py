"""From data sets to batches: sources, image operations, input pipeline."""
