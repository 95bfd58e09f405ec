"""Images in, batches out: sources, operations, the input pipeline."""
