"""Runs: assembled from a config, trained, evaluated, and opened again."""
