"""What would go wrong with a run, found before it costs accelerator time."""
