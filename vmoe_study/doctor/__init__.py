"""Checks of a run before it starts and costs accelerator time."""
